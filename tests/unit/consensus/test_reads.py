"""Reads at a chosen level: what they may rely on, that they share a question, and that they write nothing."""

import asyncio
import gc

import pytest

from consensus import waiting
from consensus.engine import Role
from consensus.errors import ProposalTimeout, Unavailable
from consensus.limits import RaftSettings
from consensus.messages import AppendEntries, Commit, ReadProbe, ReadProof, RequestVote
from consensus.reads import ReadRounds
from consensus.state import queries
from consensus.state.commands import CancelSession
from consensus.steps import ReadIndex
from storage.ids import NodeId, SessionId
from storage.memory import MemoryStore, MemoryTransaction
from tests.unit.consensus.cluster import IDS, Cluster
from tests.unit.consensus.test_group import canary, leader_of, memory_stores, running


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[MemoryStore]:
    """Stores, once for every transaction that was begun on them."""
    begun: list[MemoryStore] = []
    begin = MemoryStore.begin_write

    def note(self: MemoryStore) -> MemoryTransaction:
        begun.append(self)
        return begin(self)

    monkeypatch.setattr(MemoryStore, "begin_write", note)
    return begun


B, C, D = NodeId("b"), NodeId("c"), NodeId("d")


# -- rounds --


def test_a_round_is_confirmed_by_a_majority_of_the_voters() -> None:
    rounds = ReadRounds()
    rounds.ask(1)
    rounds.ask(2)
    assert rounds.begin(7)
    assert rounds.take_confirmed([B, C], 2) == []
    rounds.prove(B, 1)
    assert rounds.take_confirmed([B, C], 2) == [(1, 7), (2, 7)]
    assert rounds.take_confirmed([B, C], 2) == []
    assert rounds.waiting_count == 0


def test_a_proof_counts_for_earlier_rounds_and_never_for_later_ones() -> None:
    rounds = ReadRounds()
    rounds.ask(1)
    rounds.begin(7)
    rounds.ask(2)
    rounds.begin(9)
    rounds.ask(3)
    rounds.prove(B, 3)  # nobody can prove a round that has not begun
    assert rounds.take_confirmed([B, C], 2) == []
    rounds.prove(B, 1)
    assert rounds.take_confirmed([B, C], 2) == [(1, 7)]
    rounds.prove(C, 2)
    assert rounds.take_confirmed([B, C], 2) == [(2, 9)]
    rounds.begin(11)
    assert rounds.take_confirmed([B, C], 2) == []


def test_one_voter_alone_confirms_at_once_and_others_who_prove_do_not_count() -> None:
    rounds = ReadRounds()
    rounds.ask(1)
    rounds.begin(3)
    assert rounds.take_confirmed([], 1) == [(1, 3)]
    rounds.ask(2)
    rounds.begin(4)
    rounds.prove(D, 2)  # no voter
    assert rounds.take_confirmed([B, C], 2) == []


def test_what_waits_is_known_when_leadership_is_lost() -> None:
    rounds = ReadRounds()
    rounds.ask(1)
    rounds.begin(3)
    rounds.ask(2)
    assert rounds.abandon() == [1, 2]
    assert rounds.tokens() == []


# -- the replica --


def read(cluster: Cluster, i: NodeId, token: int) -> None:
    cluster.inboxes[i].append(ReadIndex(token))


def test_a_read_writes_nothing(written: list[MemoryStore]) -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run_until(lambda: cluster.now > 3)
    written.clear()
    for token in range(50):
        read(cluster, leader, token)
    cluster.run()
    last = cluster.replicas[leader].status.last_index
    assert [cluster.resolved[token].index for token in range(50)] == [last] * 50
    assert written == []


def test_a_follower_answers_not_leader() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run()
    read(cluster, next(i for i in IDS if i != leader), 1)
    cluster.run()
    assert cluster.resolved[1].error == "not_leader"


def test_one_voter_answers_in_the_same_step() -> None:
    cluster = Cluster([IDS[0]])
    cluster.elect()
    read(cluster, IDS[0], 1)
    (resolved,) = cluster.step(IDS[0]).resolved
    assert resolved.error is None
    assert resolved.index == cluster.replicas[IDS[0]].status.applied_index


def test_a_leader_that_is_cut_off_never_answers() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run()
    cluster.muted.add(leader)
    read(cluster, leader, 1)
    cluster.run()
    assert 1 not in cluster.resolved
    cluster.run_until(lambda: cluster.replicas[leader].status.role is not Role.LEADER)
    assert cluster.resolved[1].error == "not_leader"


def test_lost_probes_are_repeated() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run()
    cluster.muted.add(leader)
    read(cluster, leader, 1)
    cluster.step(leader)
    cluster.muted.clear()
    cluster.run_until(lambda: 1 in cluster.resolved, limit_s=1.0)
    assert cluster.resolved[1].error is None


def test_a_new_leader_waits_for_an_entry_of_its_own_term() -> None:
    cluster = Cluster()
    old = cluster.elect()
    cluster.propose(old, 7, b"acknowledged")
    cluster.run()
    cluster.kill(old)
    cluster.run_until(lambda: cluster.leader is not None)
    # Nothing it says arrives: it leads, and may not know what its predecessor has acknowledged.
    new = cluster.leader
    assert new is not None
    status = cluster.replicas[new].status
    read(cluster, new, 1)
    cluster.run()
    assert cluster.resolved[1].index >= cluster.resolved[7].index
    assert cluster.replicas[new].journal.term_at(cluster.resolved[1].index) == status.term


def test_a_probe_of_an_older_term_is_answered_with_the_higher_one_and_a_late_proof_is_dropped() -> None:
    cluster = Cluster()
    a, b, _ = IDS
    cluster.step(a)
    assert cluster.say(b, a, AppendEntries(3, 1, 1, 0, [(b"\x01", 2, 3)]), ReadProbe(3, 9))[-1] == ReadProof(3, 9)
    cluster.say(b, a, RequestVote(4, 9, 3))
    assert ReadProof not in {type(said) for said in cluster.say(b, a, ReadProbe(3, 10))}
    cluster.say(b, a, ReadProof(4, 1))
    assert cluster.replicas[a].status.dropped["late_proof"] == 1


# -- freshness --


def test_a_follower_is_fresh_when_it_has_applied_what_its_leader_named() -> None:
    cluster = Cluster()
    a, b, _ = IDS
    cluster.step(a)
    cluster.now = 5.0
    cluster.say(b, a, AppendEntries(3, 1, 1, 0, [(b"\x01", 2, 3)]))
    assert cluster.replicas[a].status.fresh_at == float("-inf")  # the leader has committed nothing of its term
    cluster.now = 6.0
    cluster.say(b, a, AppendEntries(3, 2, 2, 3, []))
    assert cluster.replicas[a].status.fresh_at == 6.0
    cluster.now = 7.0
    cluster.say(b, a, AppendEntries(3, 9, 2, 3, []))  # there is more than is here
    assert cluster.replicas[a].status.fresh_at == 6.0
    cluster.now = 8.0
    cluster.say(b, a, Commit(3, 2, 3))  # names only what this replica holds
    assert cluster.replicas[a].status.fresh_at == 6.0


def test_a_leader_is_as_fresh_as_its_majority() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run_until(lambda: cluster.now > 5)
    assert cluster.now - cluster.replicas[leader].status.fresh_at <= RaftSettings().heartbeat_s + 0.02
    cluster.muted.add(leader)
    heard_at = cluster.replicas[leader].status.fresh_at
    cluster.run_until(lambda: cluster.now > 6)
    assert cluster.replicas[leader].status.fresh_at == heard_at


# -- groups --


@pytest.mark.parametrize("count", [1, 200])
def test_linearizable_reads_on_every_node_share_and_write_nothing(count: int, written: list[MemoryStore]) -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            answer = await net.groups[leader].propose(canary(b"written"))
            for group in net.groups.values():  # what is written is also applied everywhere now
                await group.barrier()
            written.clear()
            for group in net.groups.values():
                indexes = await asyncio.gather(*(group.barrier() for _ in range(count)))
                assert set(indexes) == {answer.index}
            assert written == []

    asyncio.run(main())


def test_a_read_on_a_follower_sees_what_was_written_elsewhere() -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            follower = next(node for node in IDS if node != leader)
            for number in range(30):
                answer = await net.groups[leader].propose(canary(b"%d" % number))
                read_index = net.groups[follower].barrier if number % 2 else net.groups[follower].catch_up
                assert await read_index() >= answer.index
                assert net.groups[follower].status().applied_index >= answer.index
                with net.groups[follower].read() as txn:
                    assert queries.get_session(txn, SessionId("0" * 8)) is None

    asyncio.run(main())


def test_a_read_survives_the_loss_of_the_leader() -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            follower = next(node for node in IDS if node != leader)
            answer = await net.groups[follower].propose(canary(b"before"))
            net.cut(leader)
            indexes = await asyncio.gather(*(net.groups[follower].barrier() for _ in range(20)))
            assert min(indexes) >= answer.index

    asyncio.run(main())


def test_whoever_asked_a_leader_that_is_replaced_does_not_wait_for_it() -> None:
    """The old leader hears nothing and says nothing, as when its process is stopped: its links stay up."""

    async def main() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            follower = next(node for node in IDS if node != leader)
            await net.groups[follower].barrier()
            asked = asyncio.Event()

            async def never(peer: NodeId, payload: bytes) -> bytes:
                asked.set()
                await asyncio.Event().wait()
                raise AssertionError

            group = net.groups[leader]
            group.on_request = group.on_read_request = never  # type: ignore[method-assign]
            reading = asyncio.create_task(net.groups[follower].barrier(30.0))
            writing = asyncio.create_task(net.groups[follower].propose(canary(b"x"), 30.0))
            await asked.wait()
            assert await group.transfer_leadership()
            async with asyncio.timeout(10):
                await asyncio.gather(reading, writing)

    asyncio.run(main())


def test_without_a_majority_only_stale_reads_are_answered_and_their_age_grows() -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            group = net.groups[leader]
            await group.barrier()
            assert group.age_s() == 0.0
            for node in IDS:
                if node != leader:
                    net.cut(node)
            with pytest.raises(ProposalTimeout) as caught:
                await group.barrier(0.6)
            assert caught.value.code == "no_leader"
            with group.read():
                age_s = group.age_s()
            assert age_s is not None
            assert age_s > 0.3

    asyncio.run(main())


def test_too_many_reads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consensus.waiting.READS_WAITING_MAX", 10)

    async def main() -> None:
        async with running(memory_stores()) as net:
            group = net.groups[await leader_of(net)]
            results = await asyncio.gather(*(group.barrier() for _ in range(30)), return_exceptions=True)
            refused = [result for result in results if isinstance(result, Unavailable)]
            assert len(refused) == 20
            assert {error.code for error in refused} == {"overloaded"}

    asyncio.run(main())


def test_garbage_questions_are_answered() -> None:
    async def main() -> None:
        async with running(memory_stores([IDS[0]])) as net:
            group = net.groups[IDS[0]]
            await group.barrier()
            assert b"malformed" in await group.on_read_request(IDS[0], b"\xc1")

    asyncio.run(main())


# -- many proposals, one request --


def test_proposals_of_one_turn_travel_together() -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            follower = next(node for node in IDS if node != leader)
            await net.groups[follower].barrier()
            serve = net.groups[leader].on_request
            requests: list[bytes] = []

            async def count(peer: NodeId, payload: bytes) -> bytes:
                requests.append(payload)
                return await serve(peer, payload)

            net.groups[leader].on_request = count  # type: ignore[method-assign]
            answers = await asyncio.gather(*(net.groups[follower].propose(canary(b"%d" % i)) for i in range(300)))
            assert len({answer.index for answer in answers}) == 300
            assert len(requests) == 1

    asyncio.run(main())


def test_each_gets_its_own_answer() -> None:
    async def main() -> None:
        async with running(memory_stores()) as net:
            leader = await leader_of(net)
            follower = net.groups[next(node for node in IDS if node != leader)]
            await follower.barrier()
            unknown = CancelSession(session_id=SessionId("00000000-0000-0000-0000-000000000000"), reason="", at_ms=1)
            good, refused = await asyncio.gather(follower.propose(canary(b"x")), follower.propose(unknown))
            assert type(good).__name__ == "Applied"
            assert type(refused).__name__ == "Refused"

    asyncio.run(main())


def test_a_read_for_which_there_is_no_room_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "READS_WAITING_MAX", 0)

    async def main() -> None:
        stories: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, story: stories.append(story))
        async with running(memory_stores()) as net:
            group = net.groups[await leader_of(net)]
            with pytest.raises(Unavailable, match="reads wait already"):
                await group.barrier(0.0)
            async with asyncio.timeout(20):
                while group._deadlines._waiting:
                    await asyncio.sleep(0.01)
            gc.collect()
        assert stories == []

    asyncio.run(main())
