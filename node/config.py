"""Reads a TOML file and `MESHNODE_*` variables into one frozen `Config`, or says in one line what is wrong.

Rules: nothing is coerced (a port in quotes is an error), nothing unknown is passed over, and every error names the
file (or variable), the key, what was found, what is allowed and, where a name is wrong, the nearest valid one. Paths
come out absolute; an empty node name comes out as the host name. The keys are in `node.settings`.
"""

import difflib
import ipaddress
import os
import re
import socket
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import msgspec.inspect as inspect

from node.settings import (
    CONFIG_BYTES_MAX,
    ENVIRONMENT_FREE,
    ENVIRONMENT_OF_CLIENT,
    ENVIRONMENT_PREFIX,
    SECTIONS,
    ExecutionSettings,
    HttpSettings,
    LogSettings,
    MeshSettings,
    NodeSettings,
)


class ConfigError(Exception):
    """The configuration cannot be used. `str()` is one line for a person; the process exits with 2."""

    code = "config_invalid"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a daemon is told from outside. Made by `load`; paths in it are absolute or empty."""

    node: NodeSettings = NodeSettings()
    mesh: MeshSettings = MeshSettings()
    http: HttpSettings = HttpSettings()
    execution: ExecutionSettings = ExecutionSettings()
    log: LogSettings = LogSettings()
    source: str = ""
    """The file it came from, for messages; empty if there was none."""

    @property
    def data_dir(self) -> Path:
        return Path(self.node.data_dir)

    @property
    def secret_file(self) -> Path | None:
        return Path(self.mesh.secret_file) if self.mesh.secret_file else None

    @property
    def token_file(self) -> Path | None:
        return Path(self.http.token_file) if self.http.token_file else None

    @property
    def mesh_bind(self) -> str:
        """`mesh.bind`, where `auto` without a secret has become loopback."""
        if self.mesh.bind == "auto" and not self.mesh.secret_file:
            return "127.0.0.1"
        return self.mesh.bind

    @property
    def slots(self) -> int:
        """`execution.slots`, where 0 has become the number of cores this process may use."""
        return self.execution.slots or len(os.sched_getaffinity(0))


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The effective configuration: defaults, then the file, then the environment. Opens no file but `path`; whether
    the files it names can be used is `check_files`' question. Raises ConfigError."""
    source = str(path) if path is not None else ""
    base = path.resolve().parent if path is not None else Path.cwd()
    values: dict[str, dict[str, object]] = {name: {} for name in SECTIONS}
    origin: dict[tuple[str, str], str] = {}
    if path is not None:
        for section, table in _read(path).items():
            _check_section(source, section, table)
            assert isinstance(table, dict)
            for key, value in table.items():
                _check_key(source, section, key, value)
                values[section][key] = _converted(source, f"[{section}] {key}", section, key, value)
                origin[section, key] = f"{source}: [{section}] {key}"
    for variable, text in sorted(environ.items()):
        target = _target_of_variable(variable)
        if target is None:
            continue
        section, key = target
        values[section][key] = _from_text(variable, section, key, text)
        origin[section, key] = variable
    sections = {name: msgspec.convert(values[name], kind) for name, kind in SECTIONS.items()}
    config = msgspec.convert({}, Config)
    config = msgspec.structs.replace(config, source=source, **sections)
    config = _resolved(config, base, environ, origin)
    _check_combinations(config, origin)
    return config


def check_files(config: Config) -> None:
    """Whether the files named by the configuration exist and are private. Raises ConfigError."""
    for section, key, path in (
        ("mesh", "secret_file", config.secret_file),
        ("http", "token_file", config.token_file),
    ):
        if path is None:
            continue
        where = f"{config.source or 'environment'}: [{section}] {key}"
        made_by = "made by `meshnode secret new`" if key == "secret_file" else "with the token in its first line"
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise ConfigError(
                f"{where}: found {str(path)!r} ({_reason(error)}), allowed: a file {made_by}"
                f"{', the same on every machine' if key == 'secret_file' else ''}"
            ) from None
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{where}: found {str(path)!r} (not a file), allowed: a file {made_by}")
        if mode & 0o077:
            raise ConfigError(
                f"{where}: found {str(path)!r} with permissions {mode & 0o777:03o}, allowed: readable by its owner "
                f"only; run: chmod 600 {path}"
            )
        if not os.access(path, os.R_OK):
            raise ConfigError(f"{where}: found {str(path)!r} (not readable by this user), allowed: a readable file")


def make_data_dir(config: Config) -> None:
    """Raises ConfigError."""
    try:
        config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.listdir(config.data_dir)
    except OSError as error:
        reason = "not a folder" if isinstance(error, FileExistsError | NotADirectoryError) else _reason(error)
        raise ConfigError(
            f"{config.source or 'environment'}: [node] data_dir: found {config.node.data_dir!r} ({reason}), "
            "allowed: a folder of the user that runs the node, or one that can be made"
        ) from None


def describe(config: Config) -> str:
    """The effective essentials in one line, for `--check`."""
    if config.node.tier not in ("core", "auto"):
        found = "founded by others"
    elif config.mesh.bootstrap_expect == 1:
        found = "founded alone"
    else:
        found = f"founded with {config.mesh.bootstrap_expect} core nodes"
    finders = [*(["zeroconf"] if config.mesh.zeroconf else []), *config.mesh.seeds]
    with_token = " with token" if config.http.token_file else ""
    return ", ".join(
        [
            f"node {config.node.name} ({config.node.tier})",
            f"mesh {config.mesh.name} {found}",
            f"links on {join_host_port(config.mesh_bind, config.mesh.port)}",
            f"secret {config.mesh.secret_file or 'none (loopback only)'}",
            f"discovery {' '.join(finders) or 'none'}",
            f"http on {join_host_port(config.http.bind, config.http.port)}{with_token}",
            f"slots {config.slots}+{config.execution.async_slots}",
            f"data {config.node.data_dir}",
        ]
    )


def is_loopback(host: str) -> bool:
    """Whether binding to `host` can be reached from this machine only. A name other than localhost is not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def join_host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def allowed(section: str, key: str) -> str:
    """What a key may be, in words."""
    return _allowed_type(_field(section, key).type)


def variable_of(section: str, key: str) -> str:
    return f"{ENVIRONMENT_PREFIX}{section}_{key}".upper()


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: found nothing to read ({_reason(error)}), allowed: a TOML file") from None
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: found more than {CONFIG_BYTES_MAX} bytes, allowed: a smaller TOML file")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: found bytes that are not UTF-8 at {error.start}, allowed: TOML in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: found invalid TOML: {error}, allowed: [section] with key = value lines") from None


def _check_section(source: str, section: str, table: object) -> None:
    if section in SECTIONS:
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: {section}: found {_shown(table)}, allowed: a section [{section}]")
        return
    sections = ", ".join(f"[{name}]" for name in SECTIONS)
    if not isinstance(table, dict):  # a key outside any section
        nearest = _nearest_key(section)
        raise ConfigError(
            f"{source}: {section}: found a key outside a section ({_shown(table)}), allowed: sections {sections}"
            + (f"; nearest valid key: {nearest}" if nearest else "")
        )
    close = difflib.get_close_matches(section, SECTIONS, n=1, cutoff=0.4)
    raise ConfigError(
        f"{source}: [{section}]: found an unknown section, allowed: {sections}"
        + (f"; nearest valid section: [{close[0]}]" if close else "")
    )


def _check_key(source: str, section: str, key: str, value: object) -> None:
    keys = SECTIONS[section].__struct_fields__
    if key in keys:
        return
    nearest = _nearest_key(key, section)
    raise ConfigError(
        f"{source}: [{section}] {key}: found an unknown key ({_shown(value)}), allowed: {', '.join(keys)}"
        + (f"; nearest valid key: {nearest}" if nearest else "")
    )


def _nearest_key(key: str, section: str = "") -> str:
    """`[section] key` nearest to a misspelt one: in its own section first, then anywhere; empty if nothing is near."""
    key = key.lower().replace("-", "_")
    own = SECTIONS[section].__struct_fields__ if section else ()
    elsewhere = {name: kind.__struct_fields__ for name, kind in SECTIONS.items() if name != section}
    for name, keys in elsewhere.items():
        if key in keys and not difflib.get_close_matches(key, own, n=1, cutoff=0.8):
            return f"[{name}] {key}"
    close = difflib.get_close_matches(key, own, n=1, cutoff=0.5)
    if close:
        return f"[{section}] {close[0]}"
    everywhere = {name: other for other, keys in elsewhere.items() for name in keys}
    close = difflib.get_close_matches(key, everywhere, n=1, cutoff=0.6)
    return f"[{everywhere[close[0]]}] {close[0]}" if close else ""


def _target_of_variable(variable: str) -> tuple[str, str] | None:
    """Section and key that a variable overrides; None if it is none of ours."""
    if not variable.startswith(ENVIRONMENT_PREFIX):
        return None
    if variable in ENVIRONMENT_OF_CLIENT or variable.startswith(ENVIRONMENT_FREE):
        return None
    targets = {variable_of(name, key): (name, key) for name, kind in SECTIONS.items() for key in kind.__struct_fields__}
    if variable in targets:
        return targets[variable]
    close = difflib.get_close_matches(variable, targets, n=1, cutoff=0.0)
    raise ConfigError(
        f"environment: {variable}: found an unknown variable, allowed: MESHNODE_<SECTION>_<KEY>; "
        f"nearest valid variable: {close[0]}"
    )


def _from_text(variable: str, section: str, key: str, text: str) -> object:
    """A variable's text as the key's type: numbers, true/false, lists separated by commas, tables as `a=1,b=2`."""
    kind = _field(section, key).type
    value: object = text
    kinds = set(_kinds(kind))
    if kinds == {bool}:
        value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower(), text)
    elif kinds == {int}:
        value = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text
    elif list in kinds and not (str in kinds and text == "auto"):
        value = [part.strip() for part in text.split(",") if part.strip()]
    elif kinds == {dict}:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        value = {name.strip(): word.strip() for name, _, word in pairs}
    return _converted("environment", variable, section, key, value)


def _converted(source: str, name: str, section: str, key: str, value: object) -> object:
    """The value checked against the key's type; nothing is coerced."""
    kind = SECTIONS[section].__annotations__[key]
    error_text = f"{source}: {name}: found {_culprit(value, kind)}, allowed: {allowed(section, key)}"
    try:
        converted: object = msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise ConfigError(error_text) from None
    if isinstance(converted, str) and any(ord(character) < 32 for character in converted):
        raise ConfigError(f"{error_text} without control characters")
    return converted


def _culprit(value: object, kind: object) -> str:
    """Of a table or a list the entry that cannot be, if it is one; else all of it."""
    entries: list[tuple[object, str]] = []
    if isinstance(value, dict) and _fits({}, kind):
        entries = [({name: item}, f"{_shown(name)} = {_shown(item)}") for name, item in value.items()]
    elif isinstance(value, list) and _fits([], kind):
        entries = [([item], f"{_shown(item)} in a list") for item in value]
    return next((shown for alone, shown in entries if not _fits(alone, kind)), _shown(value))


def _fits(value: object, kind: object) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _resolved(config: Config, base: Path, environ: Mapping[str, str], origin: Mapping[tuple[str, str], str]) -> Config:
    home = environ.get("HOME", "")

    def absolute(section: str, key: str, text: str) -> str:
        if not text:
            return ""
        if text == "~" or text.startswith("~/"):
            text = (home or str(Path.home())) + text[1:]
        # A variable is set by whoever starts the process, so its relative path starts where the process starts.
        start = Path.cwd() if origin.get((section, key), "").startswith(ENVIRONMENT_PREFIX) else base
        return os.path.normpath(start / text)

    folders = [absolute("execution", "readable_folders", folder) for folder in config.execution.readable_folders]
    name = config.node.name or socket.gethostname().partition(".")[0][:63] or "node"
    return msgspec.structs.replace(
        config,
        node=msgspec.structs.replace(
            config.node, name=name, data_dir=absolute("node", "data_dir", config.node.data_dir)
        ),
        mesh=msgspec.structs.replace(config.mesh, secret_file=absolute("mesh", "secret_file", config.mesh.secret_file)),
        http=msgspec.structs.replace(config.http, token_file=absolute("http", "token_file", config.http.token_file)),
        execution=msgspec.structs.replace(config.execution, readable_folders=folders),
    )


def _check_combinations(config: Config, origin: Mapping[tuple[str, str], str]) -> None:
    def refuse(section: str, key: str, found: str, fix: str) -> None:
        where = origin.get((section, key)) or f"{config.source or 'environment'}: [{section}] {key}"
        if where.startswith(ENVIRONMENT_PREFIX):
            where = f"environment: {where}"
        raise ConfigError(f"{where}: found {found}, allowed: {fix}")

    mesh, http = config.mesh, config.http
    for section, host in (("mesh", mesh.bind), ("http", http.bind)):
        if (host.startswith("[") or not _is_host(host)) and not (section == "mesh" and host == "auto"):
            auto = "`auto`, " if section == "mesh" else ""
            refuse(section, "bind", repr(host), f"{auto}an IP address or a host name")
    for folder in config.execution.readable_folders:
        if not folder or os.pathsep in folder:
            refuse("execution", "readable_folders", repr(folder), f"folders whose names hold no {os.pathsep!r}")
    for seed in mesh.seeds:
        if not _is_host_port(seed):
            refuse("mesh", "seeds", repr(seed), 'entries of the form "host:port", port 1 to 65535')
    if mesh.advertise and not _is_host_port(mesh.advertise):
        refuse("mesh", "advertise", repr(mesh.advertise), '"host:port" with a port of 1 to 65535, or empty')
    if isinstance(mesh.interfaces, list) and not mesh.interfaces and mesh.zeroconf:
        refuse("mesh", "interfaces", "an empty list", '"auto", one or more names, or zeroconf = false')
    if mesh.bind != "auto" and not is_loopback(mesh.bind) and not mesh.secret_file:
        refuse(
            "mesh",
            "bind",
            f"{mesh.bind!r} without [mesh] secret_file",
            "a loopback address, or a secret_file made by `meshnode secret new`",
        )
    if config.node.tier in ("core", "auto") and mesh.bootstrap_expect > 1 and not mesh.zeroconf and not mesh.seeds:
        refuse(
            "mesh",
            "zeroconf" if ("mesh", "bootstrap_expect") not in origin else "bootstrap_expect",
            f"bootstrap_expect = {mesh.bootstrap_expect} with zeroconf = false and no seeds: nobody could be found",
            "bootstrap_expect = 1, zeroconf = true, or at least one of seeds",
        )
    if config.node.tier in ("edge", "leaf") and not mesh.zeroconf and not mesh.seeds:
        wanted = "parent" if config.node.tier == "leaf" else "Core node"
        refuse("mesh", "zeroconf", f"false and no seeds: no {wanted} could be found", "true, or at least one of seeds")
    if not is_loopback(http.bind) and not http.token_file and not http.allow_unauthenticated:
        refuse(
            "http",
            "bind",
            f"{http.bind!r} without [http] token_file",
            "a loopback address, a token_file, or allow_unauthenticated = true",
        )
    if mesh.port == http.port != 0:
        key = ("mesh", "port") if ("http", "port") not in origin else ("http", "port")
        refuse(*key, f"{http.port} for both [mesh] port and [http] port", "two different ports")


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return bool(re.fullmatch(r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host))
    return True


def _is_host_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        return False
    return _is_host(host) and bool(re.fullmatch(r"[0-9]{1,5}", port)) and 1 <= int(port) <= 65535


def _field(section: str, key: str) -> inspect.Field:
    info = inspect.type_info(SECTIONS[section])
    assert isinstance(info, inspect.StructType)
    return next(field for field in info.fields if field.name == key)


def _kinds(kind: inspect.Type) -> list[type]:
    match kind:
        case inspect.Metadata():
            return _kinds(kind.type)
        case inspect.UnionType():
            return [one for member in kind.types for one in _kinds(member)]
        case inspect.LiteralType():
            return [type(value) for value in kind.values]
        case inspect.BoolType():
            return [bool]
        case inspect.IntType():
            return [int]
        case inspect.ListType():
            return [list]
        case inspect.DictType():
            return [dict]
        case _:
            return [str]


def _allowed_type(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata():
            return _allowed_type(kind.type)
        case inspect.UnionType():
            return " or ".join(_allowed_type(one) for one in kind.types)
        case inspect.LiteralType():
            words = [f'"{value}"' if isinstance(value, str) else str(value) for value in kind.values]
            return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"a whole number from {kind.ge} to {kind.le}"
        case inspect.ListType():
            most = f" ({kind.max_length} at most)" if kind.max_length else ""
            return f"a list of strings{most}"
        case inspect.DictType():
            return "a table of names (letters, digits, `_.-`) and strings, each of at most 64 characters"
        case inspect.StrType():
            if kind.pattern:
                return "a string of 1 to 63 lower-case letters, digits and dashes"
            least = "a string that is not empty" if kind.min_length else "a string"
            return f"{least} of at most {kind.max_length} characters" if kind.max_length else least
        case _:
            raise AssertionError(kind)


def _shown(value: object) -> str:
    """A value as it may stand in a message: short, on one line, with its type where that is the point."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)[:40]
        case str():
            text = repr(value)
            return f"{text[:60]}..." if len(text) > 63 else text
        case list():
            return f"a list of {len(value)}"
        case dict():
            return "a table"
        case _:
            return f"a {type(value).__name__}"


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
