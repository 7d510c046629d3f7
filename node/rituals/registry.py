"""Which rituals this node offers: the built-in ones and those announced by installed packages.

Built-in rituals are light and imported here. Those of other packages are described by a short-lived child process
(`node.rituals.describe`): their imports may be heavy, hang or crash, and none of that belongs in the daemon. One that
cannot be loaded is left out and reported in `problems` with its reason; it never stops the daemon.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from node.rituals.definition import REQUIRED, Parameter, RitualDefinition, declaration_of

ENTRY_POINT_GROUP = "meshnode.rituals"

BUILTIN: Mapping[str, str] = {
    "consolidate": "node.rituals.builtin.consolidate:consolidate",
    "debt_scenario": "node.rituals.builtin.debt_scenario:debt_scenario",
    "echo": "node.rituals.builtin.echo:echo",
    "reflect": "node.rituals.builtin.reflect:reflect",
    "wait": "node.rituals.builtin.wait:wait",
}
"""The same table as in pyproject.toml, so that a checkout that is not installed works too (a test compares them)."""

DESCRIBE_TIMEOUT_S = 20.0
"""For importing one foreign ritual; numeric libraries take seconds on a cold disk."""


class Problem(NamedTuple):
    """A ritual that was announced and is not offered."""

    name: str
    target: str
    source: str
    reason: str


class Registry(Mapping[str, RitualDefinition]):
    """Definitions by name. Immutable once loaded."""

    def __init__(self, definitions: Mapping[str, RitualDefinition], problems: tuple[Problem, ...] = ()) -> None:
        self._definitions = dict(sorted(definitions.items()))
        self.problems = problems

    def __getitem__(self, name: str) -> RitualDefinition:
        return self._definitions[name]

    def __iter__(self) -> Any:
        return iter(self._definitions)

    def __len__(self) -> int:
        return len(self._definitions)

    @classmethod
    def load(cls, extra: Mapping[str, str] | None = None, *, entry_points: bool = True) -> "Registry":
        """Collect all rituals. `extra` adds `name -> module:attribute` (for tests and for development). Blocks for
        the start of a child process if there are any besides the built-in ones."""
        definitions: dict[str, RitualDefinition] = {}
        problems: list[Problem] = []
        for name, target in BUILTIN.items():
            try:
                definitions[name] = load_declaration(name, target)
            except Exception as error:
                problems.append(Problem(name, target, "meshnode", describe_error(error)))
        foreign: dict[str, tuple[str, str]] = {}
        announced = _announced() if entry_points else []
        announced += [(name, target, "extra") for name, target in (extra or {}).items()]
        for name, target, source in announced:
            taken = "meshnode" if name in BUILTIN else foreign[name][1] if name in foreign else None
            if BUILTIN.get(name) == target:
                continue
            if taken is not None:
                problems.append(Problem(name, target, source, f"the name is taken by {taken}; rename one of them"))
            elif not name.isidentifier() or len(name) > 64:
                problems.append(Problem(name, target, source, "a name must be an identifier of at most 64 characters"))
            else:
                foreign[name] = (target, source)
        _describe(foreign, definitions, problems)
        return cls(definitions, tuple(problems))


def load_declaration(name: str, target: str, source: str = "meshnode") -> RitualDefinition:
    """Import `module:attribute` and read its declaration. Raises whatever the import raises."""
    module_name, _, attribute = target.partition(":")
    value: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        value = getattr(value, part)
    return declaration_of(value).definition(name, target, source)


def describe_error(error: BaseException) -> str:
    """One line for a person."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


def _announced() -> list[tuple[str, str, str]]:
    if not any(_may_announce(Path(entry)) for entry in sys.path):
        return []
    import importlib.metadata  # 2 MB, which the many machines without packages of rituals are spared

    found = []
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        source = point.dist.name if point.dist is not None else "unknown distribution"
        found.append((point.name, point.value.replace(" ", ""), source))
    return sorted(set(found))


def _may_announce(entry: Path) -> bool:
    """Whether a package on this part of the path, other than this one, names our group. What is no folder may."""
    if not entry.is_dir():
        return entry.exists()
    files = (file for file in entry.glob("*-info/entry_points.txt") if not file.parent.name.startswith("meshnode-"))
    return any(ENTRY_POINT_GROUP in file.read_text(errors="replace") for file in files)


def _describe(
    foreign: Mapping[str, tuple[str, str]], definitions: dict[str, RitualDefinition], problems: list[Problem]
) -> None:
    remaining = dict(foreign)
    while remaining:
        # Each child describes as many as it can; the one on which it dies or hangs is the problem, the rest go on.
        request = json.dumps([[name, target, source] for name, (target, source) in remaining.items()])
        reason = "ended without an answer"
        try:
            child = subprocess.run(
                [sys.executable, "-P", "-m", "node.rituals.describe"],
                input=request.encode(),
                capture_output=True,
                timeout=DESCRIBE_TIMEOUT_S * len(remaining),
                env=child_environment(),
                check=False,
            )
            output = child.stdout.decode(errors="replace")
            if child.returncode:
                last = child.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
                reason = f"importing it ended the process with code {child.returncode}: {last[0]}"
        except subprocess.TimeoutExpired as expired:
            output = (expired.stdout or b"").decode(errors="replace")
            reason = "importing it took too long"
        for line in output.splitlines():
            answer = _parse(line)
            if answer is None or answer["name"] not in remaining:
                continue
            name = answer["name"]
            target, source = remaining.pop(name)
            if "error" in answer:
                problems.append(Problem(name, target, source, answer["error"]))
            else:
                definitions[name] = _definition(answer, name, target, source)
        if remaining:  # the first without an answer is the one on which the child ended
            name = next(iter(remaining))
            target, source = remaining.pop(name)
            problems.append(Problem(name, target, source, reason))


def _parse(line: str) -> dict[str, Any] | None:
    prefix = "meshnode-ritual "
    if not line.startswith(prefix):
        return None  # whatever the import printed
    answer = json.loads(line[len(prefix) :])
    return answer if isinstance(answer, dict) else None


def _definition(answer: dict[str, Any], name: str, target: str, source: str) -> RitualDefinition:
    declared = answer["parameters"]
    parameters = None
    if declared is not None:
        parameters = tuple(
            Parameter(
                **{
                    **fields,
                    "default": REQUIRED if required else fields["default"],
                    "choices": None if fields["choices"] is None else tuple(fields["choices"]),
                }
            )
            for fields, required in declared
        )
    return RitualDefinition(
        name,
        answer["version"],
        answer["kind"],
        answer["description"],
        target,
        parameters,
        answer["timeout_s"],
        source,
        answer["concurrency"],
    )


def child_environment() -> dict[str, str]:
    """The environment of child processes: everything but the daemon's own settings, which may hold secrets, plus the
    module search path, so that a checkout that is not installed works from any directory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
    root = str(Path(__file__).resolve().parent.parent.parent)
    path = [root, *(str(Path(entry).resolve()) for entry in sys.path if entry)]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    return environment
