"""Rows of the table of known faults (section 4 of the design) that a few messages show: a scenario passes with the
answer in place, and fails when that is taken away. `planted_consensus` takes the same answers away from whole seeds.
"""

import random
from collections.abc import Callable

import pytest

from consensus.election import Election
from consensus.engine import Engine, Role
from consensus.guard import Guard
from consensus.journal import Journal
from consensus.limits import RaftSettings
from consensus.messages import (
    AppendEntries,
    Commit,
    NextIndex,
    PreVote,
    ReadProbe,
    RequestPreVote,
    RequestVote,
    Vote,
    decode_frame,
)
from consensus.reads import ReadRounds
from consensus.replica import Replica
from consensus.steps import LinkDown, LinkUp, ReadIndex
from storage.ids import NodeId
from tests.simulation.checks import Checks, Violation
from tests.simulation.machine import RecordingMachine
from tests.simulation.world import ReplicaWorld
from tests.unit.consensus.cluster import IDS, Cluster

Patch = pytest.MonkeyPatch


def expect_caught(scenario: Callable[[], None], plant: Callable[[], None]) -> None:
    scenario()
    plant()
    with pytest.raises((AssertionError, Violation)):
        scenario()


def conflicted() -> tuple[Cluster, NodeId, NodeId]:
    """The old leader holds 60 entries that nobody else has; a new leader has committed others in their place."""
    cluster = Cluster()
    old = cluster.elect()
    cluster.run()
    cluster.muted.add(old)
    for token in range(60):
        cluster.propose(old, token, b"lost %d" % token)
    cluster.run()
    cluster.run_until(lambda: cluster.leader not in (None, old))
    new = cluster.leader
    assert new is not None
    for token in range(100, 130):
        cluster.propose(new, token, b"kept %d" % token)
    cluster.run()
    return cluster, old, new


# -- row 2 --


def test_row_2_one_step_back_a_round(monkeypatch: Patch) -> None:
    def scenario() -> None:
        cluster, old, new = conflicted()
        cluster.muted.clear()
        cluster.kill(old)
        cluster.restart(old)
        rejections = 0
        while cluster.replicas[old].status.applied_index < cluster.replicas[new].status.applied_index:
            for i in IDS:
                for peer, frame in cluster.step(i).messages:
                    for message in decode_frame(frame) or []:
                        is_reset = isinstance(message, NextIndex) and message.is_reset
                        rejections += is_reset and (i, peer) == (old, new)
            cluster.now += 0.01
            assert cluster.now < 100
        assert rejections <= 2

    expect_caught(
        scenario,
        lambda: monkeypatch.setattr(
            Guard, "_back_to", lambda self, previous: min(previous, self.engine.journal.last_index + 1)
        ),
    )


# -- row 3 --


def test_row_3_a_rejection_for_every_batch_on_its_way(monkeypatch: Patch) -> None:
    def scenario() -> None:
        cluster = Cluster()
        leader = cluster.elect()
        cluster.run()
        follower = next(i for i in IDS if i != leader)
        batches = [AppendEntries(1, 2, last, 1, [(b"\x00x", last + 1, 1)]) for last in range(20, 30)]
        said = cluster.say(leader, follower, *batches)
        assert len([message for message in said if isinstance(message, NextIndex)]) == 1
        probe = AppendEntries(1, 2, 2, 1, [(b"\x00x", 3, 1)])
        assert cluster.say(leader, follower, probe) == [NextIndex(1, 4, False, True)]

    expect_caught(scenario, lambda: monkeypatch.setattr(Guard, "_may_reject", lambda self, *_: True))


# -- row 4 --


def test_row_4_acknowledgements_of_another_term(monkeypatch: Patch) -> None:
    def scenario() -> None:
        cluster, _, leader = conflicted()
        cluster.muted.update(IDS)
        cluster.propose(leader, 999, b"alone")
        status = cluster.step(leader).status
        other = next(i for i in IDS if i != leader)
        cluster.say(other, leader, NextIndex(status.term - 1, status.last_index + 1, False, True))
        assert cluster.step(leader).status.commit_index < status.last_index

    expect_caught(scenario, lambda: monkeypatch.setattr(Guard, "_is_of_this_term", lambda self, message: True))


# -- row 5 --


def test_row_5_votes_are_counted_not_keyed(monkeypatch: Patch) -> None:
    five = [NodeId(name) for name in "abcde"]

    def scenario() -> None:
        cluster = Cluster(five)
        (a, b, c, *_) = five
        cluster.step(a)
        cluster.now += 2
        cluster.step(a)
        cluster.say(b, a, PreVote(0, 1))
        said = cluster.say(c, a, PreVote(0, 1))
        assert any(isinstance(message, RequestVote) for message in said)
        cluster.say(b, a, Vote(1), Vote(1), Vote(1))
        assert cluster.replicas[a].status.role is Role.CANDIDATE
        cluster.say(c, a, Vote(1))
        assert cluster.replicas[a].status.role is Role.LEADER

    expect_caught(scenario, lambda: monkeypatch.setattr(Guard, "_counts", lambda self, peer, term: True))


# -- row 6 --


def test_row_6_a_vote_that_is_forgotten(monkeypatch: Patch) -> None:
    def scenario() -> None:
        cluster = Cluster()
        a, b, c = IDS
        cluster.step(a)
        assert cluster.say(b, a, RequestVote(5, 9, 4)) == [Vote(5)]
        cluster.start(a)
        cluster.link(a)
        cluster.step(a)
        assert Vote(5) not in cluster.say(c, a, RequestVote(5, 9, 4))

    def plant() -> None:
        def forget(self: Journal, term: int, vote: str | None) -> None:
            self._term, self._vote, self._is_hard_changed = term, None, True

        monkeypatch.setattr(Journal, "setCurrentTerm", forget)

    expect_caught(scenario, plant)


# -- row 10 --


def test_row_10_elections_without_asking_first(monkeypatch: Patch) -> None:
    def scenario() -> None:
        cluster = Cluster()
        leader = cluster.elect()
        cluster.run()
        term = cluster.replicas[leader].status.term
        away = next(i for i in IDS if i != leader)
        cluster.muted.add(away)
        cluster.run_until(lambda: cluster.now > 15)
        cluster.muted.clear()
        cluster.run_until(lambda: cluster.now > 18)
        assert cluster.leader == leader
        assert cluster.replicas[leader].status.term == term

    expect_caught(scenario, lambda: monkeypatch.setattr(Election, "before_tick", lambda self, now: None))


def test_row_10_a_vote_is_not_promised_while_the_leader_is_heard(monkeypatch: Patch) -> None:
    def scenario() -> None:
        cluster = Cluster()
        leader = cluster.elect()
        cluster.run_until(lambda: cluster.now > 3)
        asker, asked = (i for i in IDS if i != leader)
        assert cluster.say(asker, asked, RequestPreVote(1, 2, 99, 1)) == []

    expect_caught(scenario, lambda: monkeypatch.setattr(Election, "is_leader_fresh", lambda self, now: False))


# -- row 11 --


def test_row_11_an_isolated_leader_that_believes() -> None:
    settings = RaftSettings()

    def scenario() -> None:
        cluster = Cluster(settings=settings)
        old = cluster.elect()
        cluster.run()
        cluster.muted.add(old)
        cluster.run_until(lambda: cluster.replicas[old].status.role is not Role.LEADER, limit_s=3.0)

    def plant() -> None:
        nonlocal settings
        settings = RaftSettings(leader_fallback_s=30.0)

    expect_caught(scenario, plant)


# -- row 12 --


def test_row_12_waiting_for_the_next_heartbeat(monkeypatch: Patch) -> None:
    def scenario() -> None:
        cluster = Cluster()
        leader = cluster.elect()
        cluster.run_until(lambda: cluster.now > 3)
        cluster.propose(leader, 1, b"x")
        cluster.run()  # the clock stands still
        assert 1 in cluster.resolved

    expect_caught(scenario, lambda: monkeypatch.setattr(Engine, "_send_new", lambda self: None))


# -- row 14 --


def test_row_14_a_commit_index_without_its_term(monkeypatch: Patch) -> None:
    """There are no snapshot messages; the one message that says what is committed without entries is `Commit`."""

    def scenario() -> None:
        cluster = Cluster()
        a, b, _ = IDS
        cluster.step(a)
        cluster.say(b, a, AppendEntries(3, 1, 1, 0, [(b"\x01", 2, 3), (b"\x00never agreed", 3, 3)]))
        cluster.say(b, a, AppendEntries(5, 1, 2, 3, []), Commit(5, 3, 5))
        assert cluster.replicas[a].status.commit_index == 1
        assert cluster.replicas[a].status.dropped["unverified_commit"] == 1

    expect_caught(
        scenario,
        lambda: monkeypatch.setattr(Guard, "_holds", lambda self, index, term: index <= self.engine.journal.last_index),
    )


# -- reads --


def test_a_proof_of_an_earlier_round_counts(monkeypatch: Patch) -> None:
    """A proof that was on its way while another leader was elected. Seeds rarely delay one for so long."""

    def scenario() -> None:
        cluster = Cluster()
        old = cluster.elect()
        cluster.run()
        voter, other = (i for i in IDS if i != old)
        cluster.inboxes[old].append(ReadIndex(1))
        cluster.step(old)
        proof = cluster.say(old, voter, ReadProbe(cluster.replicas[old].status.term, 1))[-1]
        cluster.inboxes[old].clear()
        cluster.muted.add(old)
        for i in (voter, other):
            cluster.inboxes[i].append(LinkDown(old, closed_by_peer=True))
        cluster.run_until(lambda: cluster.leader not in (None, old))
        assert cluster.leader is not None
        cluster.propose(cluster.leader, 100, b"acknowledged")
        cluster.run()
        assert cluster.resolved[100].error is None
        cluster.inboxes[old].append(ReadIndex(2))
        cluster.step(old)
        assert cluster.replicas[old].status.role is Role.LEADER
        cluster.say(voter, old, proof)
        assert 1 in cluster.resolved
        assert 2 not in cluster.resolved

    real = ReadRounds.prove
    expect_caught(
        scenario,
        lambda: monkeypatch.setattr(ReadRounds, "prove", lambda self, peer, number: real(self, peer, self.number)),
    )


def test_the_checker_sees_two_leaders() -> None:
    (alone,) = ReplicaWorld(0, 1).ids
    store = ReplicaWorld(0, 1).stores[alone]
    solo = Replica(alone, [alone], store, RecordingMachine(), RaftSettings(), random.Random(0), 0.0)
    output = solo.step([LinkUp(NodeId("n1"))], 1.0)
    assert output.status.role is Role.LEADER
    checks = Checks()
    checks.output(alone, output)
    with pytest.raises(Violation, match="two leaders"):
        checks.output(NodeId("n1"), output)
