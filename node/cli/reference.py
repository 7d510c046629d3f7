"""Writes `docs/configuration.md` from the schema: `python -m node.cli.reference [--check] [FILE]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import msgspec.inspect as inspect

from node.cli.exits import MEANING
from node.config import allowed, variable_of
from node.settings import SECTIONS

PATH = Path("docs/configuration.md")

_HEAD = """# Configuration

Generated from `node/settings.py` by `python -m node.cli.reference`; do not edit.

A node reads one TOML file: `meshnode --config FILE`. Every key is optional; an unknown key, a wrong type or an
impossible combination is an error that names the file, the key, what was found and what is allowed, and the process
ends with exit code 2. `meshnode --config FILE --check` checks a file and prints what it comes to. Ready-made files are
in `configs/`. Paths may begin with `~/`; a relative path starts at the configuration file's folder.

Each key can be overridden by an environment variable. There, true and false may be written `1` and `0`, lists are
separated by commas, and a relative path starts at the working directory. A misspelt `MESHNODE_` variable is an error
too. Client commands read `MESHNODE_URL`, `MESHNODE_TOKEN_FILE` and `MESHNODE_TIMEOUT` as defaults of their options.
"""

_COMBINATIONS = """
## What cannot be combined

- `[mesh] bind` beyond loopback without `[mesh] secret_file`: nobody could tell friend from stranger.
- `[http] bind` beyond loopback without `[http] token_file`, unless `allow_unauthenticated = true`.
- `bootstrap_expect` above 1 with `zeroconf = false` and no `seeds`: no other node could be found.
- The same number for `[mesh] port` and `[http] port`, except 0.
- `secret_file` and `token_file` must exist and be readable by their owner only when the node starts (`--check` warns).
- `tier = "edge"` or `"leaf"` with `zeroconf = false` and no `seeds`: no Core node, no parent could be found.

## Exit codes

| code | meaning |
|---|---|
"""

_COLUMNS = "| key | default | allowed | meaning | variable |\n|---|---|---|---|---|\n"


def text() -> str:
    """The whole document."""
    parts = [_HEAD]
    for name, kind in SECTIONS.items():
        parts.append(f"\n## [{name}]\n\n{kind.__doc__}\n\n{_COLUMNS}")
        info = inspect.type_info(kind)
        assert isinstance(info, inspect.StructType)
        for field in info.fields:
            cells = [f"`{field.name}`", f"`{_toml(field)}`", allowed(name, field.name), _meaning(field)]
            parts.append(f"| {' | '.join(cells)} | `{variable_of(name, field.name)}` |\n")
    parts.append(_COMBINATIONS)
    parts += [f"| {code.value} | {meaning} |\n" for code, meaning in MEANING.items()]
    return "".join(parts)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m node.cli.reference", description="Writes the reference of all keys."
    )
    parser.add_argument("path", nargs="?", type=Path, default=PATH, help="file to write (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file is not current")
    arguments = parser.parse_args(argv)
    path, is_check = arguments.path, arguments.check
    if not is_check:
        path.write_text(text(), encoding="utf-8")
        return 0
    if not path.is_file() or path.read_text(encoding="utf-8") != text():
        print(f"error: {path} is not current; fix: python -m node.cli.reference {path}", file=sys.stderr)
        return 1
    return 0


def _meaning(field: inspect.Field) -> str:
    kind = field.type
    schema = kind.extra_json_schema if isinstance(kind, inspect.Metadata) else None
    assert schema is not None, f"{field.name} has no description"
    return str(schema["description"])


def _toml(field: inspect.Field) -> str:
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
