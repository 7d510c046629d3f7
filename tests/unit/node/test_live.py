"""News of running branches: who is believed, what is kept, what is told to others."""

import asyncio
import contextlib

import pytest

from consensus.state.events import AttemptEnded, BranchAssigned, BranchCompleted, BranchRequeued, Numbered
from consensus.state.rows import Failure
from node import live as live_module
from node.executor.work import LiveUpdate
from node.live import LINES_MAX, NOTICE_BYTES_MAX, LiveBoard
from node.testing.virtual.loop import LoopClock
from storage import codec
from storage.ids import InstanceId, NodeId, SessionId

HERE, THERE, ELSEWHERE = NodeId("a" * 26), NodeId("b" * 26), NodeId("c" * 26)
SESSION = SessionId("2df18a12-f01b-4fb3-91b1-b52a88d742cf")


def update(
    index: int = 0, attempt: int = 1, node: NodeId = HERE, progress: float | None = 0.5, lines: list[str] | None = None
) -> LiveUpdate:
    return LiveUpdate(
        session_id=SESSION,
        branch_index=index,
        attempt=attempt,
        node_id=node,
        progress=progress,
        message="working",
        lines=lines or [],
    )


def board(told: list[bytes] | None = None) -> LiveBoard:
    sink = told if told is not None else []
    board = LiveBoard(HERE, lambda topic, payload: sink.append(payload))
    board.note_assigned(SESSION, 0, 1, HERE)
    return board


def test_what_happens_here_is_seen_here() -> None:
    board_ = board()
    board_.publish(update(lines=["one"]))
    board_.publish(update(progress=None, lines=["two"]))
    state = board_.get(SESSION, 0, 1)
    assert state is not None
    assert (state.node_id, state.progress, state.message, state.lines) == (HERE, 0.5, "working", ["one", "two"])


def test_only_the_executing_node_is_believed_and_only_about_its_attempt() -> None:
    board_ = board()
    board_.note_assigned(SESSION, 7, 2, THERE)
    for peer, told in [
        (ELSEWHERE, update(7, 2)),
        (THERE, update(7, 1)),
        (THERE, update(7, 3)),
        (THERE, update(8, 1)),
        (THERE, update(0, 1)),
    ]:
        board_.receive(peer, codec.encode([told]))
    assert board_.get(SESSION, 7, 2) is board_.get(SESSION, 8, 1) is None
    assert board_.refused == 5
    board_.receive(THERE, codec.encode([update(7, 2, progress=7.0)]))
    state = board_.get(SESSION, 7, 2)
    assert state is not None
    assert (state.node_id, state.progress) == (THERE, 1.0)


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"\x93\x01", codec.encode({"a": 1}), b"\xdd\xff\xff\xff\xff"])
def test_garbage_is_counted_and_forgotten(garbage: bytes) -> None:
    board_ = board()
    board_.receive(THERE, garbage)
    assert board_.refused == 1


def test_lines_are_bounded() -> None:
    board_ = board()
    board_.publish(update(lines=[f"line {i}" for i in range(500)] + ["x" * 10_000]))
    state = board_.get(SESSION, 0, 1)
    assert state is not None
    assert len(state.lines) == LINES_MAX
    assert len(state.lines[-1]) == live_module.LINE_CHARS_MAX


def test_states_and_assignments_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "STATES_MAX", 10)
    monkeypatch.setattr(live_module, "ASSIGNED_MAX", 20)
    board_ = board()
    for index in range(50):
        board_.note_assigned(SESSION, index, 1, HERE)
        board_.publish(update(index))
    assert len(board_._states) == 10
    assert len(board_._assigned) == 20
    assert board_.get(SESSION, 49, 1) is not None


def assigned(attempt: int, node_id: NodeId) -> BranchAssigned:
    return BranchAssigned(
        at_ms=0, session_id=SESSION, branch_index=0, attempt=attempt, node_id=node_id, instance_id=InstanceId("1")
    )


def test_a_new_attempt_starts_with_a_clean_slate() -> None:
    board_ = board()
    board_.publish(update(lines=["old"]))
    failure = Failure(code="ritual_failed", message="It failed.")
    requeued = BranchRequeued(at_ms=0, session_id=SESSION, branch_index=0, attempt=1, node_id=HERE, failure=failure)
    board_.on_events(
        [Numbered(index=1, position=0, event=requeued), Numbered(index=2, position=0, event=assigned(2, THERE))]
    )
    assert board_.get(SESSION, 0, 2) is None
    board_.publish(update(attempt=1))
    assert board_.refused == 1, "it has ended"


def test_of_two_attempts_each_is_heard_until_one_has_ended() -> None:
    board_ = board()
    board_.on_events([Numbered(index=1, position=0, event=assigned(2, THERE))])
    board_.publish(update(lines=["slow"]))
    board_.receive(THERE, codec.encode([update(attempt=2, lines=["fast"])]))
    first, second = board_.get(SESSION, 0, 1), board_.get(SESSION, 0, 2)
    assert first is not None
    assert second is not None
    assert (first.lines, second.lines) == (["slow"], ["fast"])
    ended = AttemptEnded(at_ms=0, session_id=SESSION, branch_index=0, attempt=1, node_id=HERE, status="superseded")
    board_.on_events([Numbered(index=2, position=0, event=ended)])
    board_.publish(update(lines=["still slow"]))
    assert board_.refused == 1


def test_a_finished_branch_keeps_its_lines_only() -> None:
    board_ = board()
    board_.note_assigned(SESSION, 1, 1, HERE)
    board_.publish(update(0, lines=["kept"]))
    board_.publish(update(1))
    for index in (0, 1):
        event = BranchCompleted(at_ms=0, session_id=SESSION, branch_index=index, attempt=1, node_id=HERE, duration_ms=1)
        board_.on_events([Numbered(index=1, position=index, event=event)])
    assert board_.get(SESSION, 0, 1) is not None
    assert board_.get(SESSION, 1, 1) is None


def test_what_runs_is_not_forgotten_for_what_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "ASSIGNED_MAX", 4)
    board_ = board()
    for index in range(1, 20):
        board_.note_assigned(SESSION, index, 1, THERE)
        event = BranchCompleted(
            at_ms=0, session_id=SESSION, branch_index=index, attempt=1, node_id=THERE, duration_ms=1
        )
        board_.on_events([Numbered(index=index, position=0, event=event)])
    board_.publish(update(0, lines=["still here"]))
    assert board_.refused == 0
    assert board_.get(SESSION, 0, 1) is not None


def test_chatty_branches_are_told_in_notices_that_a_link_takes() -> None:
    told: list[bytes] = []

    async def scenario() -> None:
        board_ = board(told)
        for index in range(300):
            board_.note_assigned(SESSION, index, 1, HERE)
            board_.publish(update(index, lines=["\N{SNOWMAN}" * 500] * 30))
        task = asyncio.create_task(board_.run())
        while sum(len(codec.decode(payload, list[LiveUpdate])) for payload in told) < 300:
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert max(map(len, told)) <= NOTICE_BYTES_MAX
    other = LiveBoard(THERE, lambda topic, payload: None)
    for index in range(300):
        other.note_assigned(SESSION, index, 1, HERE)
    for payload in told:
        other.receive(HERE, payload)
    assert other.refused == 0
    assert other.get(SESSION, 299, 1) is not None


def shared(*steps: list[LiveUpdate], ended: tuple[int, ...] = ()) -> list[tuple[float, list[int]]]:
    """When what is told on a virtual clock, if each step is published when the one before has been told."""
    told: list[tuple[float, list[int]]] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        board_ = LiveBoard(HERE, lambda topic, payload: told.append((loop.time(), _indexes(payload))))
        task = asyncio.create_task(board_.run())
        for step in steps:
            already = len(told)
            for one in step:
                board_.note_assigned(SESSION, one.branch_index, one.attempt, HERE)
                board_.publish(one)
            for index in ended:
                event = BranchCompleted(
                    at_ms=0, session_id=SESSION, branch_index=index, attempt=1, node_id=HERE, duration_ms=1
                )
                board_.on_events([Numbered(index=1, position=0, event=event)])
            while len(told) == already:
                await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with contextlib.closing(LoopClock()) as clock:
        clock.run_until_done(scenario())
    return told


def _indexes(payload: bytes) -> list[int]:
    return [one.branch_index for one in codec.decode(payload, list[LiveUpdate])]


def test_of_what_has_ended_only_lines_are_told() -> None:
    told = shared([update(0), update(1, lines=["last words"]), update(2)], ended=(0, 1))
    assert [indexes for _, indexes in told] == [[1, 2]]


def test_where_much_executes_each_is_told_less_often() -> None:
    few = shared([update(0)], [update(0)], [update(0)])
    many = shared(*[[update(index) for index in range(100)]] * 3)
    assert few[2][0] - few[1][0] == pytest.approx(live_module.SHARE_PERIOD_S, abs=0.05)
    assert many[2][0] - many[1][0] == pytest.approx(100 * live_module.UPDATE_S, abs=0.05)
