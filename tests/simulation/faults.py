"""What goes wrong. Each seed draws its own mix of faults, how often each comes, and how often any (swarm testing, Groce
et al. 2012): a fault that is everywhere hides what the others would find.

Two kinds. A blow is struck every now and then: a function here, given the world. A hazard lurks in whatever is done:
whoever does it asks `Mix.happens`. To add a blow, write the function; to add a hazard, add its name and ask.
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.world import World

BLOWS: dict[str, Callable[["World"], None]] = {}

HAZARDS = ("torn_commit", "lost_output", "slow", "slow_disk", "retired", "mute", "late", "echo")
"""The commit of a step fails; the process dies after the commit and before it says anything; a frame takes up to a
second; a disk takes its time; frames overtake or arrive twice. Executions: never heard of again; late; told twice."""


class Mix:
    """What may go wrong in one seed, until it is healed."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.is_over = False
        self.weights = {blow: dice.choice([1, 3, 10]) for blow in BLOWS if dice.random() < 0.5}
        self.hazards = {hazard: dice.choice([0.3, 1.0, 3.0]) for hazard in HAZARDS if dice.random() < 0.4}
        self.every_s = dice.choice([0.1, 0.3, 1.0])
        """Mean time between two blows."""

    def happens(self, hazard: str, chance: float) -> bool:
        """Whether the hazard strikes now, at a chance that the seed makes larger or smaller."""
        times = self.hazards.get(hazard)
        return times is not None and not self.is_over and self._dice.random() < chance * times

    def __str__(self) -> str:
        return f"blows {self.weights} every {self.every_s} s, hazards {self.hazards}"


def strike(world: "World") -> None:
    """One blow of the seed's mix, and the next one later."""
    mix, dice = world.mix, world.dice
    if mix.is_over:
        return
    world.clock.at(dice.random() * 2 * mix.every_s, strike, world)
    if mix.weights:
        (blow,) = dice.choices(list(mix.weights), list(mix.weights.values()))
        BLOWS[blow](world)


def _blow(strike_once: Callable[["World"], None]) -> Callable[["World"], None]:
    BLOWS[strike_once.__name__] = strike_once
    return strike_once


@_blow
def crash(world: "World") -> None:
    """A process is killed; what it had not committed is lost. Rarely the last one that runs."""
    if len(world.running) > 1 or (world.running and world.dice.random() < 0.3):
        world.stop(world.any_running(), restart_s=world.dice.random() * 3)


@_blow
def restart(world: "World") -> None:
    """A process is killed and is back at once, with what it has stored and nothing else."""
    if world.running:
        world.stop(world.any_running(), restart_s=world.dice.random() * 0.02)


@_blow
def storm(world: "World") -> None:
    """Power fails: many go down together and come back one after the other. Rarely, because it takes long."""
    if world.dice.random() < 0.1:
        for i in list(world.running):
            if world.dice.random() < 0.8:
                world.stop(i, restart_s=world.dice.random() * 1.5)


@_blow
def break_link(world: "World") -> None:
    if links := world.network.links:
        world.network.break_link(world.dice.choice(links))


@_blow
def partition(world: "World") -> None:
    """Ends the former one."""
    network, ids = world.network, world.ids
    network.cut.clear()
    if len(ids) > 1 and world.dice.random() < 0.7:
        network.part(set(world.dice.sample(ids, world.dice.randrange(1, len(ids)))))


@_blow
def one_way(world: "World") -> None:
    """Some hear others who do not hear them. Ends the former one."""
    network, dice = world.network, world.dice
    network.deaf.clear()
    if len(world.ids) > 1 and dice.random() < 0.7:
        for _ in range(dice.choice([1, 1, len(world.ids)])):
            source, target = dice.sample(world.ids, 2)
            network.deaf.add((source, target))


@_blow
def pause(world: "World") -> None:
    """SIGSTOP, or a virtual machine that is moved: it takes in nothing, and then everything at once."""
    if world.running:
        i = world.any_running()
        world.running[i].pause(world.dice.random() * 3)


@_blow
def full_disk(world: "World") -> None:
    """For a while no commit succeeds on one machine."""
    i = world.dice.choice(world.ids)
    if i not in world.full_disks:
        world.full_disks.add(i)
        world.clock.at(world.dice.random() * 3, world.full_disks.discard, i)


@_blow
def transfer(world: "World") -> None:
    if world.last_leader in world.running:
        world.running[world.last_leader].transfer()


@_blow
def needless_snapshot(world: "World") -> None:
    """One fetches a snapshot although its log would do."""
    if len(world.running) > 1:
        world.fetch_snapshot(*world.dice.sample(sorted(world.running), 2))


@_blow
def clock_jump(world: "World") -> None:
    """The wall clock of one machine is set, forwards or backwards."""
    world.wall_s[world.dice.choice(world.ids)] = world.dice.uniform(-15, 15)
