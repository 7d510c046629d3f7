"""After the faults, when all is well: what a healthy mesh owes its users in time, and one fault alone."""

from typing import TYPE_CHECKING

from consensus.engine import Role
from storage.ids import NodeId
from tests.simulation.checks import Violation

if TYPE_CHECKING:
    from tests.simulation.world import ReplicaWorld

LATENCY_S = 0.001
"""Of the links, from here on."""

COMMIT_S = 0.02
"""A command is agreed on in a round trip, not with the next heartbeat."""

AWAY_S = 5.0
"""Longer than any election timeout, and than a leader may believe in itself alone."""


def check(world: "ReplicaWorld") -> None:
    world.network.latency_s = LATENCY_S
    world.clock.run_for(1.0)
    _commit_is_quick(world)
    if len(world.ids) < 3 or world.dice.random() > 0.4:
        return
    leader = _leader(world)
    if world.dice.random() < 0.5:
        _leader_is_cut_off(world, leader)
    else:
        _follower_comes_back(world, leader)


def _commit_is_quick(world: "ReplicaWorld") -> None:
    token = world.load.propose(b"quick")
    assert token is not None
    world.clock.run_for(COMMIT_S)
    if token not in world.checks.acked:
        raise Violation(f"a healthy mesh has not agreed on a command in {COMMIT_S} s")
    world.clock.run_for(world.settings.commit_notice_s + COMMIT_S)
    behind = [i for i, process in world.running.items() if process.machine.latest != b"quick"]
    if behind:
        raise Violation(f"{behind} have not applied what was agreed on")


def _follower_comes_back(world: "ReplicaWorld", leader: NodeId) -> None:
    """It disturbs nobody (Ongaro's thesis, section 9.6)."""
    term = world.running[leader].replica.status.term
    away = world.dice.choice([i for i in world.ids if i != leader])
    world.network.part({away})
    world.clock.run_for(AWAY_S)
    world.network.heal()
    world.clock.run_for(3.0)
    status = world.running[leader].replica.status
    if status.role is not Role.LEADER or status.term != term:
        raise Violation(f"{away} came back, and {leader} led term {term} no more")


def _leader_is_cut_off(world: "ReplicaWorld", leader: NodeId) -> None:
    """It steps down by itself, others have elected a leader meanwhile, and it follows that when it is back."""
    world.network.part({leader})
    world.clock.run_for(AWAY_S)
    if world.running[leader].replica.status.role is Role.LEADER:
        raise Violation(f"{leader} has been cut off for {AWAY_S} s and still leads")
    if world.last_leader == leader:
        raise Violation(f"{leader} has been cut off for {AWAY_S} s and nobody leads in its place")
    world.network.heal()
    world.clock.run_for(3.0)
    if len({process.replica.status.applied_index for process in world.running.values()}) > 1:
        raise Violation(f"{leader} was cut off, and does not follow after 3 s")


def _leader(world: "ReplicaWorld") -> NodeId:
    leaders = [i for i, process in world.running.items() if process.replica.status.role is Role.LEADER]
    if len(leaders) != 1:
        raise Violation(f"a healthy mesh has the leaders {leaders}")
    return leaders[0]
