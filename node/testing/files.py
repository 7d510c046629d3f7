"""What a daemon is given: ports and a configuration file."""

import contextlib
import json
import random
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on, below the range that the kernel hands to outgoing connections, so that
    none of those takes one before the daemon does."""
    ports: list[int] = []
    dice = random.SystemRandom()
    while len(ports) < count:
        port = dice.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


def node_document(
    *,
    name: str,
    tier: str,
    directory: Path,
    mesh: Mapping[str, object],
    http: tuple[str, int],
    settings: Mapping[str, Mapping[str, object]],
) -> dict[str, dict[str, object]]:
    """A configuration; `settings` are merged into it, section by section."""
    document: dict[str, dict[str, object]] = {
        "node": {"name": name, "tier": tier, "data_dir": str(directory / "data")},
        "mesh": dict(mesh),
        "http": {"bind": http[0], "port": http[1]},
        "log": {"format": "json"},
    }
    for section, values in settings.items():
        document.setdefault(section, {}).update(values)
    return document


def to_toml(document: Mapping[str, Mapping[str, object]]) -> str:
    """A document of sections whose values are strings, numbers, booleans, lists of strings or tables of these."""

    def lines() -> Iterator[str]:
        for section, values in document.items():
            yield f"[{section}]"
            for key, value in values.items():
                yield f"{key} = {_value(value)}"

    return "\n".join(lines()) + "\n"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)  # for these types JSON and TOML agree
