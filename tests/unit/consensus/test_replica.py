"""Three replicas that hear each other at once: elections, commitment, restarts, handing over."""

import pytest

from consensus.engine import Role
from consensus.errors import ReplicaDead
from consensus.limits import COMMAND_BYTES_MAX, RaftSettings
from consensus.messages import AppendEntries, NextIndex, TimeoutNow, decode_frame, encode_frame
from consensus.snapshot import Quarantine
from consensus.steps import LinkDown, LinkUp, PeerMessage, Propose, TransferLeadership
from storage.errors import DiskFull
from storage.ids import NodeId
from tests.unit.consensus.cluster import IDS, Cluster


def test_a_leader_is_elected_and_commands_reach_every_table() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    for token in range(50):
        cluster.propose(leader, token, b"command %d" % token)
    cluster.run()
    assert [cluster.resolved[token].answer[1] for token in range(50)] == [b"command %d" % t for t in range(50)]
    assert len(cluster.digests()) == 1
    assert {replica.status.applied_index for replica in cluster.replicas.values()} == {52}


def test_a_command_is_committed_everywhere_without_waiting_for_the_clock() -> None:
    """Row 12: the engine alone would wait for its next heartbeat, twice."""
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run()
    before = cluster.frames
    cluster.propose(leader, 1, b"x")
    cluster.run()
    assert cluster.resolved[1].error is None
    assert {o.status.applied_index for o in cluster.outputs.values()} == {cluster.resolved[1].index}
    assert cluster.frames - before == 6  # entries, acknowledgements and the news of commitment, to and from two peers


def test_followers_refuse_proposals() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    follower = next(i for i in IDS if i != leader)
    cluster.propose(follower, 7, b"x")
    cluster.run()
    assert cluster.resolved[7].error == "not_leader"


def test_a_restarted_replica_goes_on_where_it_was_and_applies_nothing_twice() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    for token in range(20):
        cluster.propose(leader, token, b"%d" % token)
    cluster.run()
    victim = next(i for i in IDS if i != leader)
    applied = cluster.replicas[victim].status.applied_index
    cluster.kill(victim)
    for token in range(20, 40):
        cluster.propose(leader, token, b"%d" % token)
    cluster.run()
    cluster.restart(victim)
    assert cluster.replicas[victim].status.applied_index == applied
    cluster.run()
    cluster.run_until(lambda: len(cluster.digests()) == 1)
    assert cluster.replicas[victim].status.applied_index == applied + 20


def test_all_restart_at_once() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.propose(leader, 1, b"kept")
    cluster.run()
    term = cluster.replicas[leader].status.term
    for i in IDS:
        cluster.start(i)
    for i in IDS:
        cluster.link(i)
    leader = cluster.elect()
    assert cluster.replicas[leader].status.term > term
    cluster.propose(leader, 2, b"also")
    cluster.run()
    assert cluster.resolved[2].error is None
    assert len(cluster.digests()) == 1


def test_a_closed_link_to_the_leader_starts_an_election_at_once() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run()
    died_at = cluster.now
    cluster.kill(leader)
    cluster.run_until(lambda: cluster.leader is not None)
    assert cluster.now - died_at < 0.4  # of the virtual clock


def test_the_first_link_after_a_leader_was_lost_starts_an_election_at_once() -> None:
    """The leader dies while the other two are not linked: each waits alone, and must not go on waiting together."""
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run()
    one, other = (i for i in IDS if i != leader)
    cluster.inboxes[one].append(LinkDown(other, closed_by_peer=True))
    cluster.inboxes[other].append(LinkDown(one, closed_by_peer=True))
    cluster.kill(leader)
    alone_until = cluster.now + 0.3
    cluster.run_until(lambda: cluster.now >= alone_until)
    assert cluster.leader is None
    cluster.inboxes[one].append(LinkUp(other))
    cluster.inboxes[other].append(LinkUp(one))
    linked_at = cluster.now
    cluster.run_until(lambda: cluster.leader is not None)
    assert cluster.now - linked_at < 0.4  # of the virtual clock


def test_leadership_is_handed_over() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.propose(leader, 1, b"x")
    cluster.run()
    cluster.inboxes[leader].append(TransferLeadership())
    cluster.run_until(lambda: cluster.leader not in (None, leader), limit_s=0.2)
    assert cluster.replicas[leader].status.role is Role.FOLLOWER


def test_a_lone_voter_leads_itself() -> None:
    cluster = Cluster([NodeId("solo")])
    leader = cluster.elect()
    cluster.propose(leader, 1, b"x")
    cluster.step(leader)
    assert cluster.resolved[1].answer == (3, b"x")


def test_nothing_is_written_when_nothing_changes() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run()
    begun = []
    for store in cluster.stores.values():
        store.begin_write = lambda: begun.append(1)  # type: ignore[assignment,method-assign,return-value]
    for _ in range(100):
        cluster.now += 0.05
        cluster.run()
    assert cluster.leader == leader
    assert not begun


def test_a_failed_commit_says_nothing_and_kills_the_replica() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run()
    cluster.stores[leader].fail_next_commit(DiskFull("full"))
    cluster.propose(leader, 1, b"x")
    with pytest.raises(DiskFull):
        cluster.run()
    assert 1 not in cluster.resolved
    with pytest.raises(ReplicaDead):
        cluster.replicas[leader].step([], cluster.now)
    cluster.kill(leader)
    cluster.restart(leader)
    again = cluster.elect()
    cluster.propose(again, 2, b"y")
    cluster.run()
    assert cluster.resolved[2].error is None
    cluster.run_until(lambda: len(cluster.digests()) == 1)


def test_a_leader_writes_and_applies_what_followers_hold_in_one_transaction() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run()
    begun = []
    store = cluster.stores[leader]
    begin_write = store.begin_write
    store.begin_write = lambda: (begun.append(1), begin_write())[1]  # type: ignore[func-returns-value,method-assign]
    for token in range(5):
        cluster.propose(leader, token, b"x")
        cluster.run()
        assert cluster.resolved[token].error is None
    assert len(begun) == 5


def test_a_leader_whose_followers_are_slow_writes_by_itself() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run()
    last = cluster.replicas[leader].status.last_index
    followers = [i for i in IDS if i != leader]
    cluster.muted = set(followers)
    cluster.propose(leader, 1, b"x")
    cluster.run()
    assert cluster.replicas[leader].journal.flushed_index == last
    cluster.now += 0.003
    cluster.run()
    assert cluster.replicas[leader].journal.flushed_index == last + 1
    assert 1 not in cluster.resolved
    cluster.muted = set()
    cluster.run_until(lambda: 1 in cluster.resolved)
    assert cluster.resolved[1].error is None


def test_what_rests_on_an_unwritten_entry_is_not_said_early() -> None:
    """An entry that one follower holds and the leader has not written is agreed only with the leader's write: nobody
    may hear of it before."""
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run()
    one, other = (i for i in IDS if i != leader)
    replica = cluster.replicas[leader]
    cluster.muted = {other}
    cluster.propose(leader, 1, b"x")
    cluster.step(leader)
    cluster.step(one)
    before = replica.status.commit_index
    early: list[tuple[NodeId, bytes]] = []
    inputs, cluster.inboxes[leader] = cluster.inboxes[leader], []
    output = replica.step([*inputs, Propose(2, b"y")], cluster.now, early.extend)
    assert [resolved.token for resolved in output.resolved] == [1]
    told = [message for _, frame in early for message in decode_frame(frame) or [] if type(message) is AppendEntries]
    assert told
    assert all(message.commit_index == before for message in told)


def test_a_leader_in_quarantine_writes_what_is_agreed_before_it_says_so() -> None:
    """It applies nothing, so nothing else makes it write. Told too early, the follower that holds the entry would have
    committed it for good, and a leader that forgot it could agree on another one with the rest."""
    cluster = Cluster()
    former = cluster.elect()
    cluster.run()
    damaged, cut_off = (i for i in IDS if i != former)
    cluster.inboxes[damaged].append(Quarantine("planned"))
    cluster.run()
    cluster.muted = {cut_off}
    cluster.say(former, damaged, TimeoutNow(cluster.replicas[former].status.term))
    leader = cluster.replicas[damaged].engine
    cluster.step(former)
    cluster.step(damaged)  # it is elected, and its first entry is on its way
    cluster.step(former)
    cluster.step(damaged)
    assert leader.is_leader
    assert leader.commit_index == cluster.replicas[former].status.last_index
    assert leader.journal.flushed_index == leader.commit_index


def test_who_is_to_take_over_and_is_cut_off_waits_for_a_link() -> None:
    cluster = Cluster([NodeId("a"), NodeId("b")])
    leader = cluster.elect()
    cluster.run()
    successor = next(i for i in cluster.ids if i != leader)
    replica = cluster.replicas[successor]
    word = PeerMessage(leader, encode_frame([TimeoutNow(replica.status.term)]))
    output = replica.step([word, LinkDown(leader, closed_by_peer=True)], cluster.now)
    until, steps = cluster.now + 10, 0
    while output.next_deadline < until:
        output = replica.step([], output.next_deadline)
        steps += 1
    assert steps < 50


def test_an_oversized_command_is_refused_before_it_enters_the_log() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.propose(leader, 1, b"x" * (COMMAND_BYTES_MAX + 1))
    cluster.propose(leader, 2, b"x" * COMMAND_BYTES_MAX)
    cluster.run()
    assert cluster.resolved[1].error == "too_large"
    assert cluster.resolved[2].error is None
    assert len(cluster.digests()) == 1


def test_a_lagging_follower_is_sent_no_more_than_its_window() -> None:
    settings = RaftSettings(window_bytes=20_000, batch_bytes=4_000, commit_notice_s=0.0)
    cluster = Cluster(settings=settings)
    leader = cluster.elect()
    cluster.run()
    slow = next(i for i in IDS if i != leader)
    cluster.kill(slow)
    for token in range(1000):
        cluster.propose(leader, token, b"x" * 100)
    cluster.run_until(lambda: cluster.replicas[leader].status.applied_index > 1000)
    cluster.restart(slow)
    most = 0
    while cluster.replicas[slow].status.applied_index < cluster.replicas[leader].status.applied_index:
        for i in cluster.ids:
            output = cluster.step(i)
            if i == leader:
                most = max(most, sum(len(frame) for peer, frame in output.messages if peer == slow))
        cluster.now += 0.001
        assert cluster.now < 60
    assert most < 30_000


def test_a_paused_leader_steps_down_when_it_hears_of_a_higher_term() -> None:
    cluster = Cluster()
    old = cluster.elect()
    cluster.run()
    cluster.muted.add(old)
    cluster.run_until(lambda: cluster.leader not in (None, old))
    new = cluster.leader
    cluster.muted.clear()
    cluster.run_until(lambda: cluster.replicas[old].status.leader == new, limit_s=0.5)
    assert cluster.replicas[old].status.role is Role.FOLLOWER


def test_an_isolated_leader_does_not_believe_for_long() -> None:
    """Row 11."""
    cluster = Cluster()
    old = cluster.elect()
    cluster.run()
    cluster.muted.add(old)
    cluster.run_until(lambda: cluster.replicas[old].status.role is not Role.LEADER, limit_s=2.0)


def test_batches_are_not_longer_than_allowed() -> None:
    cluster = Cluster(settings=RaftSettings(batch_bytes=500, commit_notice_s=0.0))
    leader = cluster.elect()
    for token in range(100):
        cluster.propose(leader, token, b"x" * 90)
    output = cluster.step(leader)
    for _, frame in output.messages:
        messages = decode_frame(frame)
        assert messages is not None
        for message in messages:
            if isinstance(message, AppendEntries):
                assert sum(len(entry[0]) for entry in message.entries) <= 500


@pytest.mark.parametrize(
    "frame", [b"", b"\xc1", b"\x90" * 3, encode_frame([]) + b"x", b"\x91\x92\x01\x02", b"\xff" * 99]
)
def test_garbage_from_a_peer_is_dropped(frame: bytes) -> None:
    cluster = Cluster()
    leader = cluster.elect()
    for i in IDS:
        cluster.inboxes[i].append(PeerMessage(next(j for j in IDS if j != i), frame))
        cluster.inboxes[i].append(PeerMessage(NodeId("stranger"), encode_frame([NextIndex(9, 9, False, True)])))
    cluster.run()
    assert cluster.leader == leader
    assert cluster.replicas[leader].status.dropped["stranger"] == 1


def test_an_acknowledgement_does_not_send_again_what_is_on_its_way() -> None:
    """The engine alone would go back to what is acknowledged; and with a window, never send what was then lost."""
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run_until(lambda: cluster.now > 3)
    peer = next(i for i in IDS if i != leader)
    engine = cluster.replicas[leader].engine
    cluster.propose(leader, 1, b"x")
    cluster.step(leader)
    first = engine.next_index(peer)
    cluster.propose(leader, 2, b"y")
    cluster.step(leader)
    said = cluster.say(peer, leader, NextIndex(engine.term, first, False, True))
    assert not any(isinstance(message, AppendEntries) for message in said)
    assert (engine.match_index(peer), engine.next_index(peer)) == (first - 1, first + 1)
