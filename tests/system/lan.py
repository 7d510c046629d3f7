"""A LAN of network namespaces: one namespace a machine, all on one bridge in a namespace of its own.

Needs root and `ip`; what spoils the network needs `tc`. Nothing of it touches the machine's own interfaces, and closing
removes everything.

Packets are dropped by classic BPF programs on the ports of the bridge: whoever is cut off is not told. Delay is netem's
where the kernel has it; elsewhere a token bucket makes the link narrow, so that packets queue and, when the queue is
full, are lost.
"""

import contextlib
import ctypes
import functools
import os
import shutil
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000

DROP, GO_ON = 2, 0xFFFFFFFF
"""Answers of a filter: TC_ACT_SHOT, TC_ACT_UNSPEC (the next filter decides)."""

ARP = 0x0806

RANDOM = 0xFFFFF000 + 56
"""Where a classic BPF program reads a random word (SKF_AD_OFF + SKF_AD_RANDOM)."""

NARROW_RATE = "1mbit"
"""Of a link made slow without netem: a second's commits still pass, with a queue."""


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
        self._cuts: set[tuple[int, int]] = set()
        self._losses: dict[int, float] = {}

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
            ip("-n", name, "link", "set", "lan0", "address", mac_address(number))
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

    def cut(self, source: int, target: int) -> None:
        """Nothing that `source` sends reaches `target` any more; the other direction goes on."""
        self._cuts.add((source, target))
        self._filter(target)

    def mend(self, source: int, target: int) -> None:
        self._cuts.discard((source, target))
        self._filter(target)

    def lose(self, number: int, share: float) -> None:
        """This share of the packets from and to the machine vanishes; 0 ends it."""
        self._losses[number] = share
        self._filter(number)

    def slow(self, number: int, delay_ms: int) -> str:
        """Packets to and from the machine wait about so long; answers by what. 0 ends it."""
        ends = ((self._switch, f"p{number}"), (self.names[number], "lan0"))
        if delay_ms == 0:
            for place, device in ends:
                tc(place, "qdisc", "del", "dev", device, "root")
            return "nothing"
        jitter_ms = max(1, delay_ms // 4)
        means = ["netem", "delay", f"{delay_ms}ms", f"{jitter_ms}ms"]
        if not has_netem():
            means = ["tbf", "rate", NARROW_RATE, "burst", "5kb", "latency", f"{delay_ms}ms"]
        for place, device in ends:
            tc(place, "qdisc", "replace", "dev", device, "root", *means)
        return means[0]

    def _filter(self, number: int) -> None:
        """Renders all filters of a port anew."""
        device = f"p{number}"
        with contextlib.suppress(OSError):  # the first time there is none
            tc(self._switch, "qdisc", "del", "dev", device, "clsact")
        tc(self._switch, "qdisc", "add", "dev", device, "clsact")
        share = self._losses.get(number, 0.0)
        programs = [drop_from(source) for source, target in sorted(self._cuts) if target == number]
        if share:
            programs.append(drop_share(share))
            self._add_filter(device, "ingress", 1, drop_share(share))
        for preference, program in enumerate(programs, 1):
            self._add_filter(device, "egress", preference, program)

    def _add_filter(self, device: str, direction: str, preference: int, program: str) -> None:
        tc(self._switch, "filter", "add", "dev", device, direction, "pref", str(preference),
           "bpf", "direct-action", "bytecode", program)  # fmt: skip

    def enter(self, number: int) -> None:
        """Moves the calling thread into this machine, for good."""
        with Path(f"/run/netns/{self.names[number]}").open() as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter the namespace {self.names[number]}")

    def connect(self, number: int, host: str, port: int) -> socket.socket:
        """A TCP connection made inside this machine."""
        return self.inside(number, lambda: socket.create_connection((host, port), timeout=10))

    def inside(self, number: int, make: Callable[[], T]) -> T:
        """What `make` makes inside this machine. A socket stays in the namespace it was made in, so only a helper
        thread enters it."""
        made: list[T] = []
        failed: list[OSError] = []

        def enter() -> None:
            try:
                self.enter(number)
                made.append(make())
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made[0]


MAC_HEAD = 0x0200
"""Of every machine's Ethernet address: locally administered."""


def mac_tail(number: int) -> int:
    return 0x0077_0001 + number


def mac_address(number: int) -> str:
    return (MAC_HEAD << 32 | mac_tail(number)).to_bytes(6, "big").hex(":")


def drop_from(number: int) -> str:
    """Bytecode: drops frames that come from this machine, by their Ethernet source address. Address resolution
    passes, or the other direction would soon be gone too."""
    return program(
        (0x28, 0, 0, 12),  # half a word at 12
        (0x15, 5, 0, ARP),
        (0x28, 0, 0, 6),
        (0x15, 0, 3, MAC_HEAD),
        (0x20, 0, 0, 8),  # a word at 8
        (0x15, 0, 1, mac_tail(number)),
        (0x06, 0, 0, DROP),
        (0x06, 0, 0, GO_ON),
    )


def drop_share(share: float) -> str:
    """Bytecode: drops this share of all frames."""
    return program(
        (0x20, 0, 0, RANDOM),
        (0x35, 1, 0, int(share * 0xFFFFFFFF)),
        (0x06, 0, 0, DROP),
        (0x06, 0, 0, GO_ON),
    )


def program(*instructions: tuple[int, int, int, int]) -> str:
    return ",".join([str(len(instructions)), *(" ".join(map(str, instruction)) for instruction in instructions)])


def spoiling_unavailable_because() -> str | None:
    """Why packets cannot be dropped and delayed here; None if they can."""
    if shutil.which("tc") is None:
        return "dropping and delaying packets needs the `tc` command (Debian package iproute2)"
    try:
        with Lan(1) as lan:
            lan.lose(0, 0.5)
            lan.slow(0, 10)
    except OSError as error:
        return f"packets cannot be dropped and delayed here: {error}"
    return None


@functools.cache
def has_netem() -> bool:
    """Whether the kernel can delay packets by netem."""
    with Lan(1) as lan:
        try:
            tc(lan.names[0], "qdisc", "add", "dev", "lan0", "root", "netem", "delay", "1ms")
        except OSError:
            return False
    return True


def ip(*words: str) -> None:
    run("ip", *words)


def tc(namespace: str, *words: str) -> None:
    run("ip", "netns", "exec", namespace, "tc", *words)


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
