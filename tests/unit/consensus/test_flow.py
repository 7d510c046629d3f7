"""What a leader has on its way to a peer, and how a learner is told of what is new."""

import pytest
from msgspec.structs import replace

from consensus.flow import Flow
from consensus.limits import RaftSettings
from consensus.membership import Change
from consensus.messages import AppendEntries, decode_frame
from consensus.steps import Output, ProposeChange
from storage.ids import NodeId
from tests.unit.consensus.cluster import IDS, Cluster

D = NodeId("d")

SETTINGS = RaftSettings(commit_notice_s=0.0, learner_gather_s=0.02, learner_burst=4, window_bytes=100)


class WithLearner(Cluster):
    """`a`, `b`, `c` vote; `d` learns. Notes what the leader says to `d`."""

    def __init__(self, settings: RaftSettings = SETTINGS) -> None:
        self.told: list[AppendEntries] = []
        super().__init__([*IDS, D], settings)
        leader = self.elect()
        self.inboxes[leader].append(ProposeChange(1, Change("add", D)))
        self.run_until(lambda: self.holds(D) == self.holds(leader))
        assert self.replicas[leader].status.configuration.learners == (D,)
        self.told.clear()

    def start(self, i: NodeId) -> None:
        ids, self.ids = self.ids, [] if i == D else IDS
        super().start(i)
        self.ids = ids

    def step(self, i: NodeId) -> Output:
        output = super().step(i)
        for peer, frame in output.messages:
            if peer == D:
                self.told += [said for said in decode_frame(frame) or [] if isinstance(said, AppendEntries)]
        return output

    def holds(self, i: NodeId) -> int:
        return self.replicas[i].status.applied_index

    def commit(self, count: int, every_s: float) -> None:
        """One command after the other through the leader."""
        leader = self.elect()
        for number in range(count):
            token = 1000 + len(self.resolved) + number
            self.propose(leader, token, b"x")
            self.run()
            assert self.resolved[token].error is None
            self.now += every_s


def test_a_quiet_mesh_tells_its_learners_at_once() -> None:
    cluster = WithLearner()
    for _ in range(10):
        cluster.commit(1, every_s=0.1)
        assert cluster.holds(D) == cluster.holds(cluster.elect())


def test_under_load_what_is_committed_gathers_for_a_learner() -> None:
    cluster = WithLearner()
    cluster.commit(200, every_s=0.001)
    news = [said for said in cluster.told if said.entries]
    assert sum(len(said.entries) for said in news) > 150
    assert len(news) <= SETTINGS.learner_burst + 0.2 / SETTINGS.learner_gather_s + 1
    cluster.run_until(lambda: cluster.holds(D) == cluster.holds(cluster.elect()), limit_s=SETTINGS.learner_gather_s)


def test_a_learner_is_told_of_nothing_that_is_not_committed() -> None:
    cluster = WithLearner()
    cluster.commit(50, every_s=0.001)
    leader = cluster.elect()
    cluster.muted = {i for i in IDS if i != leader}
    cluster.propose(leader, 9, b"never agreed")
    cluster.run()
    assert all(said.prev_index + len(said.entries) <= said.commit_index for said in cluster.told)
    assert 9 not in cluster.resolved


def test_a_learner_hears_who_leads_though_nothing_happens() -> None:
    cluster = WithLearner()
    for _ in range(20):
        cluster.now += SETTINGS.heartbeat_s + 0.001
        cluster.run()
    assert len(cluster.told) >= 18
    assert cluster.replicas[D].status.leader == cluster.leader


def test_a_learner_that_is_promoted_is_told_as_a_voter_is() -> None:
    cluster = WithLearner(replace(SETTINGS, learner_gather_s=5.0, learner_burst=0))
    leader = cluster.elect()
    cluster.run_until(lambda: D in cluster.replicas[leader].status.caught_up)
    cluster.inboxes[leader].append(ProposeChange(2, Change("promote", D)))
    cluster.run_until(lambda: D in cluster.replicas[D].status.voters)
    cluster.told.clear()
    cluster.commit(20, every_s=0.001)
    assert cluster.holds(D) == cluster.holds(leader)


def test_a_window_is_one_batch_until_the_peer_has_answered() -> None:
    flow = Flow(SETTINGS)
    assert flow.has_room
    flow.note_sent(5, 10)
    assert not flow.has_room
    flow.note_answer(6)
    flow.note_sent(9, 60)
    assert flow.has_room
    flow.note_sent(12, 60)
    assert not flow.has_room
    flow.note_answer(10)
    assert flow.has_room
    flow.note_sent(20, 100)
    flow.reset()
    assert flow.has_room


@pytest.mark.parametrize("start", [0.0, 1000.0])
def test_a_burst_is_free_and_comes_back_with_rest(start: float) -> None:
    def free_turns() -> int:
        count = 0
        while flow.due_at <= now + 1e-9:
            flow.take_turn(now)
            count += 1
        return count

    flow, now = Flow(SETTINGS), start + 1.0
    assert free_turns() == SETTINGS.learner_burst + 1
    now += 3 * SETTINGS.learner_gather_s
    assert free_turns() == 3
    now += 100.0
    assert free_turns() == SETTINGS.learner_burst + 1
