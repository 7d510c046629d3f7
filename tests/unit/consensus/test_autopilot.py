"""What a leader changes by itself, and when not."""

import random

from consensus.autopilot import Autopilot, Policy, Step
from consensus.membership import Change, Configuration, Standing, judge
from storage.ids import NodeId

A, B, C, D, E = (NodeId(name) for name in "abcde")


class Mesh:
    """A leader `a`, its autopilot, and a clock."""

    def __init__(self, configuration: Configuration, wanted: int = 3) -> None:
        self.configuration = configuration
        self.autopilot = Autopilot(Policy(voters_wanted=wanted, grace_s=10))
        self.alive = set(configuration.members)
        self.unfit: set[NodeId] = set()
        self.reserve: set[NodeId] = set()
        self.behind: set[NodeId] = set()
        self.now = 100.0

    def look(self, seconds: float = 0.0) -> Step | None:
        """After so many seconds; carries out what it says."""
        self.now += seconds
        heard = self.alive - {A}
        standing = Standing(A, frozenset(heard - self.behind))
        step = self.autopilot.next_step(self.configuration, standing, heard, self.now, self.unfit, self.reserve)
        if step is not None:
            after = judge(self.configuration, step.change, standing)
            assert isinstance(after, Configuration)
            self.configuration = after
        return step

    def changes(self, seconds: float) -> list[Change]:
        steps = [self.look(1.0) for _ in range(int(seconds))]
        return [step.change for step in steps if step is not None]


def test_a_lost_voter_is_replaced_after_the_grace_time_and_stands_by_when_it_comes_back() -> None:
    mesh = Mesh(Configuration((A, B, C), (D,)))
    mesh.alive.discard(C)
    assert mesh.changes(10) == []
    assert mesh.changes(5) == [Change("promote", D), Change("demote", C)]
    assert mesh.configuration == Configuration((A, B, D), (C,))
    mesh.alive.add(C)
    assert mesh.changes(30) == []


def test_one_that_comes_back_in_time_stays() -> None:
    mesh = Mesh(Configuration((A, B, C), (D,)))
    mesh.alive.discard(C)
    assert mesh.changes(9) == []
    mesh.alive.add(C)
    mesh.look(1.0)
    mesh.alive.discard(C)
    assert mesh.changes(9) == []


def test_without_a_standby_nothing_is_done() -> None:
    mesh = Mesh(Configuration((A, B, C)))
    mesh.alive.discard(C)
    assert mesh.changes(60) == []


def test_voters_grow_by_two() -> None:
    mesh = Mesh(Configuration((A,), (B,)))
    assert mesh.changes(30) == []
    mesh.configuration = Configuration((A,), (B, C))
    mesh.alive.add(C)
    assert mesh.changes(5) == [Change("promote", B), Change("promote", C)]
    assert mesh.configuration.voters == (A, B, C)


def test_an_even_number_takes_the_first_standby() -> None:
    mesh = Mesh(Configuration((A, B), (C,)))
    assert mesh.changes(5) == [Change("promote", C)]


def test_a_replacement_that_was_overtaken_is_undone() -> None:
    mesh = Mesh(Configuration((A, B, C, D)))
    assert mesh.changes(8) == []
    assert mesh.changes(8) == [Change("demote", D)]


def test_never_what_would_leave_too_few() -> None:
    mesh = Mesh(Configuration((A, B, C, D, E)), wanted=3)
    mesh.alive -= {C, D, E}
    assert mesh.changes(60) == []


def test_who_was_demoted_by_a_person_rests_until_a_person_promotes_it() -> None:
    mesh = Mesh(Configuration((A, B, C)))
    standing = Standing(A, frozenset({B, C}))
    demoted = judge(mesh.configuration, Change("demote", C, is_resting=True), standing)
    assert demoted == Configuration((A, B), (C,), (), (C,))
    mesh.configuration = demoted
    assert mesh.changes(60) == []
    assert judge(demoted, Change("promote", C), standing) == Configuration((A, B, C))
    assert judge(demoted, Change("remove", C), standing) == Configuration((A, B), (), (C,))


def test_a_standby_may_be_told_to_rest() -> None:
    mesh = Mesh(Configuration((A, B, C), (D,)))
    resting = judge(mesh.configuration, Change("demote", D, is_resting=True), Standing(A, frozenset({B, C, D})))
    assert resting == Configuration((A, B, C), (D,), (), (D,))
    mesh.configuration = resting
    mesh.alive.discard(C)
    assert mesh.changes(60) == []


def test_an_edge_is_not_promoted_and_one_that_votes_is_replaced() -> None:
    mesh = Mesh(Configuration((A, B, C), (D, E)))
    mesh.unfit = {D}
    mesh.alive.discard(C)
    assert mesh.changes(20) == [Change("promote", E), Change("demote", C)]
    mesh = Mesh(Configuration((A, B, C), (D, E)))
    mesh.unfit = {C, D}
    assert mesh.changes(5) == [Change("promote", E), Change("demote", C)]
    assert mesh.changes(30) == []


def test_edges_alone_make_no_voters() -> None:
    mesh = Mesh(Configuration((A, B), (C, D)))
    mesh.unfit = {C, D}
    assert mesh.changes(30) == []


def test_those_in_reserve_vote_when_no_other_standby_is_there() -> None:
    mesh = Mesh(Configuration((A, B, C), (D, E)))
    mesh.reserve = {D}
    mesh.alive.discard(C)
    assert mesh.changes(20) == [Change("promote", E), Change("demote", C)]
    mesh.alive.discard(B)
    assert mesh.changes(20) == [Change("promote", D), Change("demote", B)]


def test_voters_grow_out_of_the_reserve_too() -> None:
    mesh = Mesh(Configuration((A, B, C), (D, E)), wanted=5)
    mesh.reserve = {D, E}
    assert mesh.changes(5) == [Change("promote", D), Change("promote", E)]


def test_the_reserve_waits_for_a_core_node_that_is_about_to_catch_up() -> None:
    mesh = Mesh(Configuration((A, B, C), (D, E)))
    mesh.reserve = {D}
    mesh.alive.discard(C)
    assert mesh.changes(9) == []
    mesh.behind = {E}
    assert mesh.changes(8) == [], "it may be a moment only"
    mesh.behind = set()
    assert mesh.changes(8) == [Change("promote", E), Change("demote", C)]
    mesh = Mesh(Configuration((A, B, C), (D, E)))
    mesh.reserve, mesh.behind = {D}, {E}
    mesh.alive.discard(C)
    assert mesh.changes(30) == [Change("promote", D), Change("demote", C)], "it never catches up"


def test_a_lost_voter_is_replaced_though_there_are_as_many_as_there_can_be() -> None:
    seven = tuple(NodeId(name) for name in "abcdefg")
    mesh = Mesh(Configuration(seven, (NodeId("h"),)), wanted=7)
    mesh.alive.discard(B)
    assert mesh.changes(20) == [Change("demote", B), Change("promote", NodeId("h"))]


def test_a_lost_voter_is_replaced_though_more_are_wanted_than_there_are() -> None:
    mesh = Mesh(Configuration((A, B, C), (D,)), wanted=5)
    mesh.alive.discard(C)
    assert mesh.changes(20) == [Change("promote", D), Change("demote", C)]


def test_whatever_is_lost_and_comes_back_the_voters_end_up_right() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        wanted, count = rng.choice([1, 3, 5, 7]), rng.randrange(2, 10)
        nodes = [NodeId(name) for name in "abcdefghi"[:count]]
        first = min(rng.choice([1, 3, 5]), (count - 1) // 2 * 2 + 1)
        mesh = Mesh(Configuration(tuple(nodes[:first]), tuple(nodes[first:])), wanted)
        mesh.unfit = {node for node in nodes[first:] if rng.random() < 0.15}
        mesh.reserve = {node for node in nodes[first:] if rng.random() < 0.3} - mesh.unfit
        for _ in range(8):
            mesh.alive ^= {rng.choice(nodes[1:])}
            if len(mesh.alive.intersection(mesh.configuration.voters)) < mesh.configuration.majority:
                mesh.alive = set(nodes)
            mesh.changes(rng.choice([1, 3, 12, 30]))
        mesh.changes(100)
        assert mesh.changes(100) == [], f"seed {seed}: it does not settle"
        voters = mesh.configuration.voters
        standbys = mesh.alive.intersection(mesh.configuration.learners) - mesh.unfit
        assert len(voters) <= max(wanted, first), f"seed {seed}"
        assert not standbys or mesh.alive.issuperset(voters), f"seed {seed}: a lost voter is not replaced"
        assert len(standbys) < 2 or len(voters) >= wanted, f"seed {seed}: fewer than there could be"
        assert len(voters) % 2 or mesh.alive.issuperset(voters), f"seed {seed}: an even number, and one is lost"
