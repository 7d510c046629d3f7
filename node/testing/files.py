"""What a daemon is given: ports and a configuration file."""

import contextlib
import json
import random
import socket
from collections.abc import Iterator, Mapping


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


def to_toml(document: Mapping[str, Mapping[str, object]]) -> str:
    """A document of sections whose values are strings, numbers, booleans or lists of strings."""

    def lines() -> Iterator[str]:
        for section, values in document.items():
            yield f"[{section}]"
            for key, value in values.items():
                yield f"{key} = {json.dumps(value)}"  # for these types JSON and TOML agree

    return "\n".join(lines()) + "\n"
