"""Every seed of replicas whose voters change is safe under faults and converges after them; and what makes it so is
taken away, one by one, which must be noticed.
"""

import random

import pytest

from consensus import members, membership
from consensus.engine import Engine, Role
from consensus.guard import Guard
from consensus.journal import TABLES, Journal
from consensus.members import Members
from consensus.membership import Change, ChangeKind, Configuration, Refusal
from consensus.messages import AppendEntries, PreVote, RequestPreVote, RequestVote, Vote, decode_frame
from consensus.replica import Replica
from consensus.steps import LinkUp, ProposeChange
from storage.ids import NodeId
from storage.memory import MemoryStore
from tests.simulation.machine import APPLIED_TABLE, RecordingMachine
from tests.simulation.member_world import MemberWorld
from tests.simulation.planting import Patch, caught
from tests.simulation.run import run_seed
from tests.simulation.seeds import chunks
from tests.simulation.test_guard_scenarios import expect_caught
from tests.unit.consensus.cluster import IDS, Cluster

A, B, C = IDS
D = NodeId("d")


@pytest.mark.parametrize(("nodes", "seeds"), chunks({1: 20, 3: 60, 5: 20}))
def test_seeds(nodes: int, seeds: range) -> None:
    for seed in seeds:
        run_seed(seed, nodes, MemberWorld)


def joined(cluster: Cluster, newcomer: NodeId = D) -> None:
    """A replica without a configuration, linked to all."""
    cluster.stores[newcomer] = MemoryStore((*TABLES, APPLIED_TABLE))
    machine, rng = RecordingMachine(), random.Random(newcomer)
    cluster.replicas[newcomer] = Replica(
        newcomer, (), cluster.stores[newcomer], machine, cluster.settings, rng, cluster.now
    )
    cluster.inboxes[newcomer] = []
    cluster.link(newcomer)
    for i in cluster.replicas:
        if i != newcomer:
            cluster.inboxes[i].append(LinkUp(newcomer))
    cluster.run()


def ask(cluster: Cluster, token: int, kind: ChangeKind, node: NodeId) -> None:
    assert cluster.leader is not None
    cluster.inboxes[cluster.leader].append(ProposeChange(token, Change(kind, node)))
    cluster.run()


def refusal(cluster: Cluster, token: int) -> str:
    assert token in cluster.resolved, "it was not refused"
    answer = cluster.resolved[token].answer
    assert isinstance(answer, Refusal), cluster.resolved[token]
    return answer.code


def wait(cluster: Cluster, seconds: float) -> None:
    until = cluster.now + seconds
    cluster.run_until(lambda: cluster.now >= until)


# -- the way it goes --


def test_a_newcomer_learns_and_votes_when_it_has_caught_up() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    for token in range(100, 120):
        cluster.propose(leader, token, b"%d" % token)
    cluster.run()
    joined(cluster)
    assert cluster.replicas[D].status.configuration == Configuration()
    ask(cluster, 1, "add", D)
    assert cluster.resolved[1].answer == Configuration(tuple(IDS), (D,))
    ask(cluster, 2, "add", D)  # asked for twice, done once
    assert cluster.resolved[2].answer == Configuration(tuple(IDS), (D,))
    cluster.run_until(lambda: D in cluster.replicas[leader].status.caught_up)
    assert len(cluster.digests()) == 1
    ask(cluster, 3, "promote", D)
    assert cluster.resolved[3].answer == Configuration((*IDS, D))
    for i in cluster.replicas:
        assert cluster.replicas[i].status.voters == (*IDS, D)


def test_a_leader_that_is_to_vote_no_more_hands_over_first() -> None:
    cluster = Cluster()
    old = cluster.elect()
    wait(cluster, 3)
    ask(cluster, 1, "remove", old)
    assert cluster.resolved[1].error == "not_leader"
    cluster.run_until(lambda: cluster.leader not in (None, old))
    wait(cluster, 3)
    ask(cluster, 2, "remove", old)
    assert cluster.resolved[2].error is None
    cluster.run_until(lambda: cluster.replicas[old].status.is_removed)


def test_what_is_refused() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    wait(cluster, 3)
    others = [i for i in IDS if i != leader]
    cluster.muted.add(others[0])
    wait(cluster, 5)
    ask(cluster, 1, "demote", others[1])
    assert refusal(cluster, 1) == "quorum_lost"
    ask(cluster, 2, "promote", D)
    assert refusal(cluster, 2) == "unknown_node"
    ask(cluster, 3, "demote", others[0])  # two are left, and both are there
    assert cluster.resolved[3].error is None
    ask(cluster, 4, "demote", others[1])
    assert cluster.resolved[4].error is None
    ask(cluster, 5, "demote", leader)
    assert refusal(cluster, 5) == "last_voter"
    ask(cluster, 6, "remove", others[0])
    ask(cluster, 7, "add", others[0])
    assert refusal(cluster, 7) == "removed"


# -- what is taken away --


def test_row_9_two_changes_in_flight(monkeypatch: Patch) -> None:
    def scenario() -> None:
        cluster = Cluster()
        leader = cluster.elect()
        wait(cluster, 3)
        cluster.muted.update(IDS)
        ask(cluster, 1, "add", D)
        ask(cluster, 2, "add", NodeId("e"))
        assert refusal(cluster, 2) == "change_pending"
        assert cluster.replicas[leader].status.is_changing

    expect_caught(scenario, lambda: monkeypatch.setattr(Members, "_is_changing", lambda self: False))


def test_row_9_a_leader_that_does_not_know_what_is_committed(monkeypatch: Patch) -> None:
    """Its log may hold, below its own first entry, a change that is committed, or one that is not."""

    def scenario() -> None:
        cluster = Cluster()
        cluster.step(A)
        cluster.now += 2
        cluster.step(A)
        cluster.say(B, A, PreVote(0, 1))
        cluster.say(B, A, Vote(1))
        assert cluster.replicas[A].status.role is Role.LEADER
        cluster.inboxes[A].append(ProposeChange(1, Change("add", D)))
        cluster.step(A)
        assert refusal(cluster, 1) == "leader_is_new"

    expect_caught(scenario, lambda: monkeypatch.setattr(Engine, "has_committed_in_term", True))


def test_row_17_a_restart_forgets_what_is_not_applied(monkeypatch: Patch) -> None:
    def scenario() -> None:
        store = MemoryStore((*TABLES, APPLIED_TABLE))
        cluster = Cluster()
        a = Replica(A, IDS, store, RecordingMachine(), cluster.settings, random.Random(1), 0.0)
        after = Configuration((A, B), (C,))
        entry = (b"\x10" + membership.encode_configuration(after), 2, 1)
        a.step([LinkUp(B)], 0.0)
        cluster.replicas[A], cluster.stores[A] = a, store
        cluster.say(B, A, AppendEntries(1, 1, 1, 0, [entry]))
        assert a.status.configuration == after
        again = Replica(A, IDS, store, RecordingMachine(), cluster.settings, random.Random(1), 0.0)
        assert again.status.configuration == after
        cluster.replicas[A] = again
        again.step([LinkUp(B)], 0.0)
        cluster.say(B, A, AppendEntries(2, 1, 1, 0, [(b"\x01", 2, 2)]))  # cut off, it does not count any more
        assert again.status.voters == tuple(IDS)

    expect_caught(scenario, lambda: monkeypatch.setattr(Journal, "_note", lambda self, index, command: None))


def test_a_learners_vote_counts(monkeypatch: Patch) -> None:
    def scenario() -> None:
        store = MemoryStore((*TABLES, APPLIED_TABLE))
        cluster = Cluster()
        a = Replica(A, IDS, store, RecordingMachine(), cluster.settings, random.Random(1), 0.0)

        def role() -> Role:
            return a.status.role

        entry = (b"\x10" + membership.encode_configuration(Configuration((A, B, C), (D,))), 2, 1)
        a.step([LinkUp(B), LinkUp(C), LinkUp(D)], 0.0)
        cluster.replicas[A] = a
        cluster.say(B, A, AppendEntries(1, 1, 1, 0, [entry]))
        cluster.now += 3
        cluster.step(A)
        cluster.say(D, A, PreVote(1, 2))
        assert role() is Role.FOLLOWER
        cluster.say(B, A, PreVote(1, 2))
        cluster.say(D, A, Vote(2))
        assert role() is Role.CANDIDATE
        cluster.say(B, A, Vote(2))
        assert role() is Role.LEADER

    expect_caught(scenario, lambda: monkeypatch.setattr(Guard, "_counts", lambda self, peer, term: True))


def test_a_learner_stands_for_election(monkeypatch: Patch) -> None:
    def scenario() -> None:
        cluster = Cluster()
        leader = cluster.elect()
        wait(cluster, 3)
        learner = next(i for i in IDS if i != leader)
        ask(cluster, 1, "demote", learner)
        cluster.muted.update(i for i in IDS if i != learner)
        for _ in range(40):
            cluster.now += 0.1
            frames = cluster.step(learner).messages
            said = [message for _, frame in frames for message in decode_frame(frame) or []]
            assert not any(isinstance(message, RequestPreVote | RequestVote) for message in said)

    def plant() -> None:
        real = Engine._reconfigure

        def reconfigure(self: Engine) -> None:
            real(self)
            self.is_voter = True

        monkeypatch.setattr(Engine, "_reconfigure", reconfigure)

    expect_caught(scenario, plant)


def test_a_node_that_lags_is_promoted(monkeypatch: Patch) -> None:
    def scenario() -> None:
        cluster = Cluster()
        cluster.elect()
        joined(cluster)
        ask(cluster, 1, "add", D)
        cluster.muted.add(D)
        wait(cluster, 5)
        ask(cluster, 2, "promote", D)
        assert refusal(cluster, 2) == "not_caught_up"

    expect_caught(scenario, lambda: monkeypatch.setattr(Engine, "is_caught_up", lambda self, peer: True))


def test_a_removed_node_that_does_not_know_unseats_nobody_and_is_told(monkeypatch: Patch) -> None:
    def scenario() -> None:
        cluster = Cluster()
        leader = cluster.elect()
        wait(cluster, 3)
        removed = next(i for i in IDS if i != leader)
        cluster.muted.add(removed)
        ask(cluster, 1, "remove", removed)
        assert cluster.resolved[1].error is None
        term = cluster.replicas[leader].status.term
        cluster.replicas[removed].engine.adopt_term(term + 5)  # as if it had stood for election meanwhile
        wait(cluster, 3)
        cluster.muted.clear()
        wait(cluster, 5)
        assert (cluster.leader, cluster.replicas[leader].status.term) == (leader, term)
        assert cluster.replicas[removed].status.is_removed

    expect_caught(scenario, lambda: monkeypatch.setattr(Guard, "_may_stranger_say", lambda *_: True))


def test_several_voters_in_one_change(monkeypatch: Patch) -> None:
    def judge(configuration: Configuration, change: Change, standing: membership.Standing) -> object:
        if change.kind == "promote" and not standing.is_changing:
            return Configuration(configuration.members)
        return membership.judge(configuration, change, standing)

    monkeypatch.setattr(members, "judge", judge)
    assert caught(range(20), MemberWorld, sizes=(3,))
