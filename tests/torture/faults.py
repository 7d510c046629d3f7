"""What goes wrong, when, and for how long: a plan drawn from a seed, and the hands that carry it out.

The plan is pure: the same seed gives the same plan on every machine. Whom a fault meets may depend on who leads then.
One node is hit at a time, now and then by two faults together, so that a majority is left, except by `blackout`, which
kills every node.
"""

import contextlib
import random
import signal
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from node.testing import Daemon
from tests.torture.ground import Ground
from tests.torture.shifted_clock import set_offset

HOLD_S_MAX = 10.0
BACK_S = 30.0
"""A daemon that was started again serves within this, even on a busy machine."""

ALONE = {"blackout", "disk"}
"""Kinds that choose their victims themselves."""

CLOCK_STEPS_S = (-86_400.0, -3_600.0, -30.0, -1.0, 1.0, 30.0, 3_600.0, 86_400.0)


@dataclass(frozen=True, slots=True)
class Planned:
    """`who`: `leader`, `follower` or the name of a node. `amount` means what the kind says."""

    at_s: float
    hold_s: float
    kind: str
    who: str
    amount: float = 0.0

    @property
    def what(self) -> str:
        return f"{self.kind} {self.amount:g}" if self.amount else self.kind

    def __str__(self) -> str:
        return f"{self.at_s:7.1f} s  {self.what}, {self.who}, for {self.hold_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Happened:
    """When it really was, in seconds after the begin, and whom it met."""

    planned: Planned
    victim: str
    from_s: float
    to_s: float

    def __str__(self) -> str:
        return f"{self.planned.what} on {self.victim} ({self.planned.who}), {self.from_s:.1f} - {self.to_s:.1f} s"


Hands = Callable[[Ground, Daemon, Planned], contextlib.AbstractContextManager[None]]


def plan(seed: int, duration_s: float, every_s: float, nodes: int, kinds: Collection[str]) -> list[Planned]:
    """One fault in every `every_s`, over before the next and a while before the end."""
    dice = random.Random(f"torture {seed}")
    hold_max_s = min(HOLD_S_MAX, 0.6 * every_s)
    drawn: list[Planned] = []
    bag: list[str] = []
    for slot in range(int(duration_s // every_s)):
        at_s = slot * every_s + dice.uniform(0.0, 0.2 * every_s)
        who = dice.choice(["leader", "leader", "follower", "any"])
        if who == "any":
            who = f"node-{dice.randint(1, nodes)}"
        for number in range(2 if dice.random() < 0.15 else 1):
            if not bag:  # every kind comes up before one comes again
                bag = sorted(kinds)
                dice.shuffle(bag)
            if number and ({bag[-1], drawn[-1].kind} & ALONE or bag[-1] == drawn[-1].kind):
                break
            kind = bag.pop()
            hold_s = dice.uniform(min(1.0, hold_max_s), hold_max_s)
            drawn.append(Planned(round(at_s, 1), round(hold_s, 1), kind, who, amount_of(kind, dice)))
    return drawn


def amount_of(kind: str, dice: random.Random) -> float:
    match kind:
        case "loss":
            return round(dice.uniform(0.05, 0.3), 2)
        case "delay":
            return float(dice.choice([20, 50, 100, 200]))
        case "clock":
            return dice.choice(CLOCK_STEPS_S)
        case _:
            return 0.0


def kinds_possible(ground: Ground) -> list[str]:
    network = set() if ground.lan is not None else NETWORK_KINDS
    disk = set() if ground.small_disk is not None else {"disk"}
    return sorted(set(HANDS) - network - disk)


def carry_out(ground: Ground, victim: Daemon, planned: Planned) -> contextlib.AbstractContextManager[None]:
    """Entering does it, leaving heals it, and returns when the node serves again."""
    return HANDS[planned.kind](ground, victim, planned)


def victim_of(ground: Ground, planned: Planned) -> Daemon:
    if planned.kind == "disk":
        return ground.daemons[-1]  # the one on the small disk
    if planned.who not in ("leader", "follower"):
        return ground.mesh[planned.who]
    leader = ground.leader() or ground.daemons[0]
    if planned.who == "leader":
        return leader
    return ground.daemons[(ground.number(leader) + 1) % len(ground.daemons)]


@contextlib.contextmanager
def kill(ground: Ground, victim: Daemon, planned: Planned) -> Iterator[None]:
    """SIGKILL, started again afterwards."""
    with ground.out([victim]):
        victim.kill()
        try:
            yield
        finally:
            start_again(ground, [victim])


@contextlib.contextmanager
def stop(ground: Ground, victim: Daemon, planned: Planned) -> Iterator[None]:
    """SIGTERM, started again afterwards."""
    with ground.out([victim]):
        victim.stop(deadline_s=60.0)
        try:
            yield
        finally:
            start_again(ground, [victim])


@contextlib.contextmanager
def blackout(ground: Ground, victim: Daemon, planned: Planned) -> Iterator[None]:
    """SIGKILL to every node."""
    with ground.out(ground.daemons):
        for daemon in ground.daemons:
            daemon.kill()
        try:
            yield
        finally:
            start_again(ground, ground.daemons)


def start_again(ground: Ground, daemons: list[Daemon]) -> None:
    for daemon in daemons:
        if not daemon.is_running:
            daemon.start()
    for daemon in daemons:
        ground.wait_answering(daemon, BACK_S)


@contextlib.contextmanager
def pause(ground: Ground, victim: Daemon, planned: Planned) -> Iterator[None]:
    """SIGSTOP: silence over open connections."""
    with ground.out([victim]):
        if victim.is_running:
            victim.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            if victim.is_running:
                victim.signal(signal.SIGCONT)
                ground.wait_answering(victim, BACK_S)


def cutting(pairs: Callable[[int, int], list[tuple[int, int]]], *, is_out: bool) -> Hands:
    """Cuts these directions between the victim's number and the count of nodes."""

    @contextlib.contextmanager
    def hands(ground: Ground, victim: Daemon, planned: Planned) -> Iterator[None]:
        assert ground.lan is not None
        cut = pairs(ground.number(victim), len(ground.daemons))
        with ground.out([victim] if is_out else []):
            for source, target in cut:
                ground.lan.cut(source, target)
            try:
                yield
            finally:
                for source, target in cut:
                    ground.lan.mend(source, target)

    return hands


def others(victim: int, nodes: int) -> list[int]:
    return [number for number in range(nodes) if number != victim]


@contextlib.contextmanager
def loss(ground: Ground, victim: Daemon, planned: Planned) -> Iterator[None]:
    """Some packets of one node vanish."""
    assert ground.lan is not None
    number = ground.number(victim)
    ground.lan.lose(number, planned.amount)
    try:
        yield
    finally:
        ground.lan.lose(number, 0)


@contextlib.contextmanager
def delay(ground: Ground, victim: Daemon, planned: Planned) -> Iterator[None]:
    """Packets of one node come late."""
    assert ground.lan is not None
    number = ground.number(victim)
    ground.lan.slow(number, int(planned.amount))
    try:
        yield
    finally:
        ground.lan.slow(number, 0)


@contextlib.contextmanager
def clock(ground: Ground, victim: Daemon, planned: Planned) -> Iterator[None]:
    """The wall clock of one node jumps, and jumps back."""
    path = ground.clock_path(victim)
    set_offset(path, planned.amount)
    try:
        yield
    finally:
        set_offset(path, 0)


@contextlib.contextmanager
def disk(ground: Ground, victim: Daemon, planned: Planned) -> Iterator[None]:
    """The disk of one node is full."""
    with ground.out([victim]):
        ground.resize_disk(is_full=True)
        try:
            yield
        finally:
            ground.resize_disk(is_full=False)
            time.sleep(DISK_NOTICED_S)


DISK_NOTICED_S = 2.0
"""A replica looks for free space this often."""

HANDS: dict[str, Hands] = {
    "kill": kill,
    "stop": stop,
    "blackout": blackout,
    "pause": pause,
    "isolate": cutting(
        lambda victim, nodes: [pair for other in others(victim, nodes) for pair in ((victim, other), (other, victim))],
        is_out=True,
    ),
    "mute": cutting(lambda victim, nodes: [(victim, other) for other in others(victim, nodes)], is_out=True),
    "deaf": cutting(lambda victim, nodes: [(other, victim) for other in others(victim, nodes)], is_out=True),
    "one_way": cutting(lambda victim, nodes: [(victim, (victim + 1) % nodes)], is_out=False),
    "no_link": cutting(
        lambda victim, nodes: [(victim, (victim + 1) % nodes), ((victim + 1) % nodes, victim)], is_out=False
    ),
    "loss": loss,
    "delay": delay,
    "clock": clock,
    "disk": disk,
}
"""Kind -> how. `mute`: hears all, nobody hears it. `deaf`: the other way round. `one_way`: one neighbour does not hear
it. `no_link`: the two do not hear each other, a third hears both."""

NETWORK_KINDS = {"isolate", "mute", "deaf", "one_way", "no_link", "loss", "delay"}
