"""A LAN of network namespaces: one namespace a machine, all on one bridge in a namespace of its own.

Needs root and `ip`. Nothing of it touches the machine's own interfaces, and closing removes everything.
"""

import ctypes
import os
import shutil
import socket
import subprocess
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

CLONE_NEWNET = 0x40000000


def unavailable_because() -> str | None:
    """Why namespaces cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the `ip` command (Debian package iproute2)"
    probe = f"probe-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return None


class Lan:
    """Machines `0` ... `count - 1` with the addresses 10.77.0.1 ... on one bridge."""

    def __init__(self, count: int) -> None:
        self._tag = uuid.uuid4().hex[:6]
        self._switch = f"mn{self._tag}-sw"
        self.names = [f"mn{self._tag}-{number}" for number in range(count)]

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build(self) -> None:
        ip("netns", "add", self._switch)
        ip("-n", self._switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", self._switch, "link", "set", "br0", "up")
        for number, name in enumerate(self.names):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", self._switch, "link", "add", f"p{number}", "type", "veth", "peer", "name", "lan0", "netns", name)
            ip("-n", self._switch, "link", "set", f"p{number}", "master", "br0", "up")
            ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "lan0", "broadcast", "+")
            ip("-n", name, "link", "set", "lan0", "up", "multicast", "on")
            ip("-n", name, "route", "add", "default", "dev", "lan0")

    def close(self) -> None:
        for name in [*self.names, self._switch]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def address(self, number: int) -> str:
        return f"10.77.0.{number + 1}"

    def prefix(self, number: int) -> tuple[str, ...]:
        """Goes before a command that is to run on this machine."""
        return ("ip", "netns", "exec", self.names[number])

    def unplug(self, number: int) -> None:
        """Pulls the machine's cable: packets vanish, no connection is told."""
        ip("-n", self._switch, "link", "set", f"p{number}", "down")

    def plug(self, number: int) -> None:
        ip("-n", self._switch, "link", "set", f"p{number}", "up")

    def connect(self, number: int, host: str, port: int) -> socket.socket:
        """A TCP connection made inside this machine. A socket stays in the namespace it was made in, so only a
        helper thread enters it."""
        made: list[socket.socket | OSError] = []

        def enter() -> None:
            try:
                with Path(f"/run/netns/{self.names[number]}").open() as namespace:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(socket.create_connection((host, port), timeout=10))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        result = made[0]
        if isinstance(result, OSError):
            raise result
        return result


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
