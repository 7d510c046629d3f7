"""Attempts that end well: results, versions, many at once, live updates, statistics."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from consensus.state.rows import Failure, Knowledge
from node.executor.work import BranchInput
from tests.unit.executor.harness import SESSION, asked_for_patterns, drive, known_patterns, running

HEAVY = {"aiohttp", "zeroconf", "pysyncobj", "cryptography", "lmdb", "msgspec", "structlog", "ssl"}


def test_a_cpu_ritual_gets_its_context_and_its_knowledge_is_recorded(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            outcome = await bench.run("add", "sum it up", attempt=4)
            assert outcome.failure is None
            knowledge = outcome.knowledge
            assert knowledge is not None
            assert (outcome.ritual_version, outcome.node_id, outcome.attempt) == ("7", "node-a", 4)
            assert (knowledge.patterns, knowledge.connections) == (["a pattern"], [("a", "b")])
            assert (knowledge.novelty, knowledge.score, knowledge.summary) == (0.5, 2.0, "sum it up")
            assert knowledge.result["attempt"] == 4
            assert knowledge.result["thought"] == "why?"
            assert knowledge.result["session_id"] == SESSION
            assert knowledge.result["nice"] >= 10
            assert Path(knowledge.result["cwd"]).is_relative_to(tmp_path / "scratch")
            again = await bench.run("add", "sum it up", attempt=5)
            assert again.knowledge is not None
            assert again.knowledge.result["seed"] == knowledge.result["seed"]

    drive(test)


def test_workers_import_nothing_heavy(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            cpu = await bench.run("add")
            loop = await bench.run("modules")
            assert cpu.knowledge is not None
            assert loop.knowledge is not None
            assert not HEAVY & set(cpu.knowledge.result["modules"])
            assert "asyncio" not in cpu.knowledge.result["modules"]
            assert not (HEAVY - {"ssl"}) & set(loop.knowledge.result["modules"])  # asyncio imports ssl by itself

    drive(test)


def test_a_hundred_async_waits_run_at_once_in_one_worker(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            works = [bench.submit("sleep_long") for _ in range(100)]
            await bench.until(lambda: len({update.branch_index for update in bench.live}) == 100)
            assert bench.executor.statistics().async_busy == 100
            assert len(bench.worker_pids()) == 1
            for work in works:
                assert bench.executor.cancel(work.session_id, work.branch_index, work.attempt)
            await bench.until(lambda: bench.executor.statistics().async_busy == 0)
            assert (await bench.run("echo", "still here")).failure is None
            assert bench.executor.statistics().kills == 0

    drive(test)


def test_no_more_than_the_slots_run_and_the_rest_waits(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, slots=2, async_slots=3) as bench:
            cpu = [bench.submit("hang") for _ in range(5)]
            loop = [bench.submit("sleep_long") for _ in range(5)]
            await bench.until(lambda: len({update.branch_index for update in bench.live}) == 5)
            statistics = bench.executor.statistics()
            assert (statistics.slots_busy, statistics.async_busy, statistics.pending) == (2, 3, 5)
            assert len(statistics.workers) == 3
            for work in cpu + loop:
                bench.executor.cancel(work.session_id, work.branch_index, work.attempt)
            await bench.until(lambda: bench.executor.statistics().async_busy == 0)
            assert (await bench.run("add")).failure is None
            assert bench.outcomes[0].branch_index == 10, "cancelled attempts have no outcome"

    drive(test)


def test_the_same_attempt_is_executed_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            work = bench.submit("echo", "once")
            bench.executor.submit(work)
            await bench.until(lambda: bool(bench.outcomes))
            bench.executor.submit(work)
            await bench.run("echo", "another")
            assert [outcome.branch_index for outcome in bench.outcomes] == [0, 1]
            assert not bench.executor.cancel(work.session_id, work.branch_index, work.attempt)

    drive(test)


def test_a_cpu_worker_is_kept_warm(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            first, second = await bench.run("add"), await bench.run("add")
            assert first.knowledge is not None
            assert second.knowledge is not None
            assert first.knowledge.result["pid"] == second.knowledge.result["pid"]

    drive(test)


def test_an_idle_cpu_worker_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.executor.limits.IDLE_KEEP_S", 0.01)

    async def test() -> None:
        async with running(tmp_path) as bench:
            await bench.run("add")
            await bench.until(lambda: len(bench.worker_pids()) == 1)
            assert bench.executor.statistics().crashes == 0
            assert (await bench.run("add")).failure is None

    drive(test)


@pytest.mark.parametrize(
    ("ritual", "parameters", "code", "text"),
    [
        ("no_such", {}, "unknown_ritual", "no_such"),
        ("wait", {"secnds": 1}, "invalid_parameters", "did you mean 'seconds'"),
        ("wait", {"seconds": -1}, "invalid_parameters", "found -1"),
    ],
)
def test_work_that_cannot_run_fails_with_its_reason(
    tmp_path: Path, ritual: str, parameters: dict[str, Any], code: str, text: str
) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            outcome = await bench.run(ritual, **parameters)
            assert outcome.failure is not None
            assert outcome.failure.code == code
            assert text in outcome.failure.message
            assert not outcome.is_lost

    drive(test)


def test_a_node_without_slots_hands_cpu_work_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, slots=0) as bench:
            outcome = await bench.run("add")
            assert outcome.failure is not None
            assert (outcome.failure.code, outcome.is_lost) == ("no_slots", True)

    drive(test)


def test_inputs_reach_a_consolidation(tmp_path: Path) -> None:
    inputs = [
        BranchInput(
            branch_index=index,
            task=f"task {index}",
            ritual="echo",
            ritual_version="1",
            node_id="node-a",
            attempt=1,
            status="completed" if index else "failed",
            duration_ms=1,
            knowledge=Knowledge(patterns=["p"] * 3, result="x" * 500) if index else None,
            failure=None if index else Failure(code="ritual_error", message="no"),
        )
        for index in range(2_000)
    ]

    async def test() -> None:
        async with running(tmp_path) as bench:
            outcome = await bench.run("count_inputs", inputs=inputs)
            assert outcome.knowledge is not None, outcome.failure
            assert outcome.knowledge.result == {
                "count": 2_000,
                "phrases": 1_999 * 3,
                "failed": ["ritual_error"],
                "top": 3,
                "trimmed": False,
            }
            empty = await bench.run("count_inputs", inputs=[])
            assert empty.knowledge is not None
            assert empty.knowledge.result["count"] == 0

    drive(test)


def test_a_ritual_is_told_that_results_are_left_out(tmp_path: Path) -> None:
    inputs = [
        BranchInput(
            branch_index=index,
            task="t",
            ritual="echo",
            ritual_version="1",
            node_id="node-a",
            attempt=1,
            status="completed",
            duration_ms=1,
            knowledge=Knowledge(patterns=["p"]),
        )
        for index in range(10)
    ]

    async def test() -> None:
        async with running(tmp_path) as bench:
            outcome = await bench.run("count_inputs", inputs=inputs, inputs_trimmed=True)
            assert outcome.knowledge is not None
            assert (outcome.knowledge.result["trimmed"], outcome.knowledge.result["phrases"]) == (True, 10)

    drive(test)


@pytest.mark.parametrize("lookup", [known_patterns, asked_for_patterns])
@pytest.mark.parametrize("ritual", ["ask", "ask_async"])
def test_a_ritual_can_ask_what_the_mesh_has_seen(tmp_path: Path, ritual: str, lookup: object) -> None:
    async def test() -> None:
        async with running(tmp_path, lookup=lookup) as bench:
            outcome = await bench.run(ritual)
            assert outcome.knowledge is not None
            assert outcome.knowledge.result == {"known": 3}

    drive(test)


def test_output_becomes_bounded_log_lines_and_never_harms_the_protocol(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            outcome = await bench.run("chatter")
            assert outcome.knowledge is not None, outcome.failure
            assert outcome.knowledge.result == "done"
            lines = bench.lines()
            assert {"to stdout", "to stderr", "to the log"} <= set(lines) or len(lines) >= 50
            assert any("further lines are dropped" in line for line in lines)
            assert len(lines) <= 1_010
            assert all(len(update.lines) <= 51 for update in bench.live)

    drive(test)


def test_output_of_async_rituals_is_told_apart(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as bench:
            works = [bench.submit("chatter_async", f"task-{number}") for number in range(20)]
            await bench.until(lambda: len(bench.outcomes) == 20)
            for work in works:
                updates = [update for update in bench.live if update.branch_index == work.branch_index]
                assert [line for update in updates for line in update.lines] == [f"hello from {work.task}"]
                assert updates[0].progress == 0.25

    drive(test)


def test_large_parameters_and_results_of_many_attempts_pass(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, async_slots=1_000) as bench:
            task = "x" * 15_000
            for _ in range(1_000):
                bench.submit("echo", task)
            await bench.until(lambda: len(bench.outcomes) == 1_000)
            assert all(o.knowledge is not None and o.knowledge.result == task for o in bench.outcomes)

    drive(test)


def test_start_and_stop_without_work(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, prewarm_cpu=True) as bench:
            await bench.executor.stop()
            await bench.executor.stop()
        async with running(tmp_path, prewarm_cpu=True) as bench:
            async with asyncio.timeout(30):
                await bench.executor.wait_ready()

    drive(test)


def test_without_warm_workers_the_first_work_starts_them(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, is_warm=False) as bench:
            assert bench.worker_pids() == []
            assert (await bench.run("add")).failure is None
            assert (await bench.run("modules")).failure is None

    drive(test)
