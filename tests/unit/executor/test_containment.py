"""Attempts that end badly: each has a readable reason, and neighbours and daemon go on."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from node.executor import limits
from node.executor.work import Work
from tests.unit.executor.harness import Bench, drive, environment, is_alive, python, running, wait_for


@pytest.mark.parametrize(
    ("ritual", "code", "texts"),
    [
        ("raise_error", "ritual_error", ["ValueError: the figures do not add up", "misbehaving.py:", "in raise_error"]),
        ("raise_error_async", "ritual_error", ["ValueError", "misbehaving.py:"]),
        ("raise_nasty", "ritual_error", ["_Nasty"]),
        ("call_exit", "ritual_error", ["sys.exit(3)"]),
        ("call_exit_async", "ritual_error", ["sys.exit(3)"]),
        ("cancel_itself", "ritual_error", ["cancelled its own task"]),
        ("leave", "worker_crashed", ["exited with code 17", "about to leave"]),
        ("leave_async", "worker_crashed", ["exited with code 17"]),
        ("segfault", "worker_crashed", ["SIGSEGV", "segfault"]),
        ("recurse", "ritual_error", ["RecursionError"]),
        ("write_into_channel", "worker_crashed", ["not ours"]),
        ("write_no_text_into_channel", "worker_crashed", ["not ours"]),
    ],
)
def test_a_failure_costs_one_attempt_and_says_why(tmp_path: Path, ritual: str, code: str, texts: list[str]) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            outcome = await bench.run(ritual)
            assert outcome.failure is not None
            assert outcome.failure.code == code, outcome.failure
            for text in texts:
                assert text in outcome.failure.message
            assert not outcome.is_lost
            assert outcome.knowledge is None
            assert (await bench.run("add")).failure is None
            assert (await bench.run("echo", "on we go")).failure is None

    drive(test)


def test_memory_is_capped(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, memory_bytes_max=256 * 1024 * 1024) as bench:
            outcome = await bench.run("devour")
            assert outcome.failure is not None
            assert outcome.failure.code == "out_of_memory"
            assert "more memory than its worker may use" in outcome.failure.message
            assert (await bench.run("add")).failure is None
            assert bench.executor.statistics().crashes == 0

    drive(test)


@pytest.mark.parametrize(
    ("task", "code", "text"),
    [
        ("object", "invalid_result", "type object"),
        ("nan", "invalid_result", "only finite numbers"),
        ("set", "invalid_result", "type set"),
        ("int_key", "invalid_result", "key of type int"),
        ("cycle", "invalid_result", "nested deeper"),
        ("huge", "result_too_large", "allowed are 65536"),
        ("huge_int", "invalid_result", "64 bits"),
        ("surrogate", "invalid_result", "surrogates"),
        ("novelty", "invalid_result", "novelty must be from 0 to 1"),
        ("mixed", "invalid_result", "'verdict'"),
        ("lambda", "invalid_result", "type function"),
    ],
)
def test_a_result_that_is_no_knowledge_is_refused(tmp_path: Path, task: str, code: str, text: str) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            outcome = await bench.run("return_value", task)
            assert outcome.failure is not None
            assert outcome.failure.code == code
            assert text in outcome.failure.message

    drive(test)


def test_plain_results_are_wrapped(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            none, plain, fields = [await bench.run("return_value", task) for task in ("none", "plain", "fields")]
            assert none.knowledge is not None
            assert none.knowledge.result is None
            assert plain.knowledge is not None
            assert plain.knowledge.result == {"verdict": "good"}
            assert fields.knowledge is not None
            assert (fields.knowledge.summary, fields.knowledge.score) == ("short", 1.0)

    drive(test)


@pytest.mark.parametrize("ritual", ["hang", "sleep_long"])
def test_a_deadline_ends_the_attempt(tmp_path: Path, ritual: str) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            outcome = await bench.run(ritual, timeout_s=0.2)
            assert outcome.failure is not None
            assert outcome.failure.code == "deadline_exceeded"
            assert "0.2 s" in outcome.failure.message
            assert (await bench.run("add")).failure is None
            assert (await bench.run("echo")).failure is None

    drive(test)


@pytest.mark.parametrize("ritual", ["hang_the_loop", "ignore_cancellation"])
def test_a_disobedient_ritual_costs_the_worker_and_its_neighbours_are_only_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ritual: str
) -> None:
    monkeypatch.setattr(limits, "CANCEL_GRACE_S", 0.1)

    async def test() -> None:
        async with running(tmp_path) as bench:
            neighbours = [bench.submit("sleep_long") for _ in range(3)]
            await bench.until(lambda: len({update.branch_index for update in bench.live}) == 3)
            guilty = await bench.run(ritual, timeout_s=0.2)
            assert guilty.failure is not None
            assert guilty.failure.code == "deadline_exceeded"
            assert "did not end when told to" in guilty.failure.message
            assert not guilty.is_lost
            await bench.until(lambda: len(bench.outcomes) == 4)
            for work in neighbours:
                outcome = bench.of(work)
                assert outcome is not None
                assert outcome.failure is not None
                assert (outcome.is_lost, outcome.failure.code) == (True, "worker_lost")
            assert (await bench.run("echo")).failure is None

    drive(test)


def test_cancelling_a_cpu_ritual_frees_its_slot(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, slots=1) as bench:
            work = bench.submit("hang")
            waiting = bench.submit("add")
            await bench.until(lambda: bool(bench.live))
            (pid,) = [worker.pid for worker in bench.executor.statistics().workers if worker.kind == "cpu"]
            assert bench.executor.cancel(work.session_id, work.branch_index, work.attempt)
            await bench.until(lambda: bench.of(waiting) is not None)
            await bench.until(lambda: not is_alive(pid))
            assert bench.of(work) is None

    drive(test)


def test_work_can_be_cancelled_in_the_moment_it_is_submitted(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            await bench.run("echo")
            for ritual in ("sleep_long", "hang"):
                work = bench.submit(ritual)
                assert bench.executor.cancel(work.session_id, work.branch_index, work.attempt)
            await bench.until(lambda: bench.executor.statistics().async_busy == 0)
            await bench.run("echo")
            assert len(bench.outcomes) == 2

    drive(test)


def test_a_worker_killed_from_outside_loses_its_attempts_and_is_replaced(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            works = [bench.submit("sleep_long") for _ in range(5)]
            await bench.until(lambda: len({update.branch_index for update in bench.live}) == 5)
            os.kill(bench.async_pid(), signal.SIGKILL)
            await bench.until(lambda: len(bench.outcomes) == 5)
            for work in works:
                outcome = bench.of(work)
                assert outcome is not None
                assert outcome.failure is not None
                assert (outcome.is_lost, outcome.failure.code) == (True, "worker_lost")
                assert "SIGKILL" in outcome.failure.message
            assert (await bench.run("echo")).failure is None
            assert bench.executor.statistics().crashes == 1

    drive(test)


def test_after_a_crash_beside_others_the_suspects_run_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            neighbour = bench.submit("sleep_long")
            await bench.until(lambda: bool(bench.live))
            crashing = bench.submit("leave_async")
            await bench.until(lambda: len(bench.outcomes) == 2)
            assert all(outcome.is_lost for outcome in bench.outcomes)
            assert {outcome.branch_index for outcome in bench.outcomes} == {
                neighbour.branch_index,
                crashing.branch_index,
            }
            pid = bench.async_pid_or_none()
            again = await bench.run("leave_async", attempt=2)
            assert again.failure is not None
            assert (again.is_lost, again.failure.code) == (False, "worker_crashed")
            assert (await bench.run("echo")).failure is None
            assert pid is None or bench.async_pid() == pid, "the shared worker was not touched"
            innocents = [bench.submit("sleep_long", attempt=2) for _ in range(5)]
            await bench.until(lambda: bench.executor.statistics().async_busy == len(innocents))

    drive(test)


def test_who_blocks_the_loop_of_others_costs_them_one_attempt(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            innocent = bench.submit("wait", seconds=0.5, timeout_s=1.5)
            await bench.until(lambda: bool(bench.live))
            blocking = bench.submit("hang_the_loop")
            await bench.until(lambda: len(bench.outcomes) == 2)
            assert _how(bench, innocent) == ("deadline_exceeded", False)
            assert _how(bench, blocking) == ("worker_lost", True)
            bench.submit("hang_the_loop", attempt=2)
            again = await bench.run("wait", seconds=0.5, attempt=2, index=innocent.branch_index)
            assert again.failure is None

    drive(test)


def test_children_of_a_ritual_die_with_its_worker(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            work = bench.submit("start_child")
            await bench.until(lambda: bool(bench.lines()))
            child = int(bench.lines()[0].removeprefix("child "))
            assert is_alive(child)
            bench.executor.cancel(work.session_id, work.branch_index, work.attempt)
            await bench.until(lambda: not is_alive(child))

    drive(test)


def test_what_a_ritual_leaves_in_its_directory_goes_with_its_worker(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            work = bench.submit("litter")
            await bench.until(lambda: bool(bench.lines()))
            directory = Path(bench.lines()[0])
            assert (directory / "litter").exists()
            bench.executor.cancel(work.session_id, work.branch_index, work.attempt)
            await bench.until(lambda: not directory.exists())
            assert (await bench.run("add")).failure is None

    drive(test)


def test_drain_waits_for_what_ends_in_time_and_hands_back_the_rest(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, slots=1) as bench:
            quick = bench.submit("wait", seconds=0.3)
            endless, stuck = bench.submit("sleep_long"), bench.submit("hang")
            waiting = bench.submit("add")
            await bench.until(lambda: len({update.branch_index for update in bench.live}) == 3)
            await bench.executor.drain(2.0)
            late = bench.submit("echo")
            await bench.until(lambda: len(bench.outcomes) == 5)
            assert _how(bench, quick) is None
            assert _how(bench, endless) == ("drained", True)
            assert _how(bench, stuck) == ("drained", True)
            assert _how(bench, waiting) == ("draining", True)
            assert _how(bench, late) == ("draining", True)

    drive(test)


def test_drain_returns_at_once_when_idle(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            await bench.run("echo")
            await bench.executor.drain(60.0)
            assert bench.executor.statistics().is_draining

    drive(test)


def test_a_worker_that_cannot_start_is_reported_and_work_is_handed_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.executor.process.sys.executable", "/bin/false")
    monkeypatch.setattr(limits, "START_BACKOFF_S_MIN", 0.001)

    async def test() -> None:
        async with running(tmp_path) as bench:
            outcome = await bench.run("echo")
            assert outcome.failure is not None
            assert (outcome.failure.code, outcome.is_lost) == ("worker_unavailable", True)
            assert any(event == "worker_start_failed" for event, _ in bench.events)

    drive(test)


_OWNER = """
import asyncio, sys
from pathlib import Path
from node.executor.executor import Executor
from node.executor.work import ExecutorSettings, Work
from tests.unit.executor.harness import registry

async def main():
    def live(update):
        if update.progress is not None:
            print("running", update.branch_index, *[w.pid for w in executor.statistics().workers], flush=True)
    settings = ExecutorSettings(node_id="n", slots=1, scratch_directory=Path(sys.argv[1]))
    executor = Executor(settings, registry(), print, live)
    await executor.start()
    for index, ritual in enumerate(["hang", "sleep_long"]):
        work = Work(session_id="s", branch_index=index, attempt=1, ritual=ritual, task="", parameters={}, seed=1,
                    timeout_ms=3_600_000)
        executor.submit(work)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_workers_die_with_the_daemon(tmp_path: Path) -> None:
    async def test() -> None:
        with subprocess.Popen(  # noqa: ASYNC220 - nothing else runs on this loop yet
            [python(), "-c", _OWNER, str(tmp_path / "scratch")], stdout=subprocess.PIPE, text=True, env=environment()
        ) as owner:
            assert owner.stdout is not None
            seen: dict[str, list[int]] = {}
            while len(seen) < 2:
                words = owner.stdout.readline().split()
                assert words[:1] == ["running"], words
                seen[words[1]] = [int(word) for word in words[2:]]
            pids = {pid for found in seen.values() for pid in found}
            assert len(pids) == 2
            assert all(is_alive(pid) for pid in pids)
            owner.kill()
        await wait_for(lambda: not any(is_alive(pid) for pid in pids))

    drive(test)


def _how(bench: Bench, work: Work) -> tuple[str, bool] | None:
    outcome = bench.of(work)
    assert outcome is not None
    return None if outcome.failure is None else (outcome.failure.code, outcome.is_lost)


def test_who_waits_too_long_behind_busy_slots_is_handed_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WAITING_S_MAX", 0.05)

    async def test() -> None:
        async with running(tmp_path, async_slots=1) as bench:
            busy = bench.submit("sleep_long")
            waiting = bench.submit("sleep_long")
            await bench.until(lambda: bool(bench.outcomes))
            assert _how(bench, waiting) == ("waited_too_long", True)
            assert [key.branch_index for key in bench.executor.running()] == [busy.branch_index]

    drive(test)
