"""What only the virtual mesh has: time that costs nothing, and runs that can be repeated."""

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from node.rituals.context import Context
from node.rituals.definition import ritual
from node.testing import MeshTestError, VirtualMesh

LONG_S = 60.0


@ritual(version="3", timeout_s=9 * LONG_S)
async def ponder(context: Context) -> dict[str, Any]:
    """Takes a minute."""
    await asyncio.sleep(LONG_S)
    return {"result": [context.attempt, context.random.random(), random.random()], "patterns": ["slow"]}


@ritual(timeout_s=9 * LONG_S)
def grind(context: Context) -> list[Any]:
    context.progress(0.5, "half")
    time.sleep(LONG_S / 2)
    return [context.task, context.seen(["slow"])]


EFFECTS: list[str] = []


@ritual
def write_twice(context: Context) -> None:
    EFFECTS.append(f"{context.attempt} begins")
    try:
        time.sleep(10.0)
        EFFECTS.append(f"{context.attempt} ends")
    finally:
        EFFECTS.append(f"{context.attempt} cleans up")


@ritual
def exits(context: Context) -> None:
    raise KeyboardInterrupt("mine")


@pytest.fixture
def mesh() -> Iterator[VirtualMesh]:
    with VirtualMesh(seed=5) as mesh:
        yield mesh


def run(mesh: VirtualMesh, ritual: str, branches: int = 1, deadline_s: float = 9 * LONG_S, **more: object) -> Any:
    session = mesh.submit(thought="?", branches=[{"ritual": ritual, "task": "t", **more}] * branches)
    return mesh.wait_session(session["id"], deadline_s)


def test_an_async_ritual_sleeps_in_virtual_time(mesh: VirtualMesh) -> None:
    mesh.start(rituals=[ponder])
    began, really = mesh.now, time.monotonic()
    session = run(mesh, "ponder", 5)
    assert session["status"] == "completed"
    assert LONG_S <= mesh.now - began < LONG_S + 10
    assert time.monotonic() - really < LONG_S
    branch = mesh.branch(session["id"], 0)
    assert branch["knowledge"]["result"][0] == 1
    assert branch["branch"]["ritual_version"] == "3"
    assert mesh.insight(session["id"])["emergent_patterns"]


def test_a_cpu_ritual_takes_what_it_sleeps_and_what_is_declared(mesh: VirtualMesh) -> None:
    mesh.start(rituals=[ponder, grind], cpu_s={"grind": 100.0})
    run(mesh, "ponder", 2)
    began = mesh.now
    session = run(mesh, "grind")
    assert LONG_S / 2 + 100 <= mesh.now - began < LONG_S / 2 + 110
    assert mesh.branch(session["id"], 0)["knowledge"]["result"] == ["t", {"slow": 3}]


def test_a_slow_link_is_slow(mesh: VirtualMesh) -> None:
    leader = mesh.start()
    name = mesh.followers()[0]
    body = {"thought": "?", "branches": [{"ritual": "echo", "task": "t"}]}

    def submit_s() -> float:
        began = mesh.now
        mesh.call(name, "POST", "/v1/sessions", body).expect(201)
        return mesh.now - began

    assert submit_s() < 0.05
    mesh.slow(name, leader, delay_s=0.2)
    assert 0.4 < submit_s() < 1.0
    mesh.heal()
    mesh.run_for(1.0)  # what is on its way comes first
    assert submit_s() < 0.05


def test_a_cpu_ritual_stops_where_it_is_when_its_node_dies(mesh: VirtualMesh) -> None:
    EFFECTS.clear()
    mesh.start(rituals=[write_twice])
    session = mesh.submit(thought="?", branches=[{"ritual": "write_twice", "task": "t"}])
    mesh.run_for(5.0)
    holder = mesh.holder(session["id"])
    assert holder is not None
    mesh.kill(holder)
    mesh.wait_session(session["id"])
    assert EFFECTS == ["1 begins", "2 begins", "2 ends", "2 cleans up"]
    mesh.close()
    assert EFFECTS[4:] == ["1 cleans up"]


def test_whatever_a_cpu_ritual_raises_is_its_failure(mesh: VirtualMesh) -> None:
    mesh.start(cores=1, rituals=[exits])
    session = run(mesh, "exits", attempts_max=1)
    assert "KeyboardInterrupt: mine" in mesh.branches(session["id"])[0]["failure"]["message"]


def test_a_cpu_ritual_asks_the_mesh_from_a_leaf_too(mesh: VirtualMesh) -> None:
    mesh.start(cores=1, leaves=1, rituals=[ponder, grind], settings={"execution": {"slots": 2}})
    run(mesh, "ponder")
    session = run(mesh, "grind", 4)
    assert {mesh.holder(session["id"], index) for index in range(4)} == {"core-1", "leaf-1"}
    assert [mesh.branch(session["id"], i)["knowledge"]["result"] for i in range(4)] == [["t", {"slow": 1}]] * 4


def test_a_node_that_was_away_for_long_gets_a_snapshot_or_the_log(mesh: VirtualMesh) -> None:
    mesh.start()
    away = mesh.followers()[0]
    mesh.kill(away)
    for _ in range(5):
        run(mesh, "echo", 20)
    mesh.restart(away)
    mesh.wait_ready()
    last = mesh.submit(thought="last", branches=[{"ritual": "echo", "task": "t"}], on=away)
    assert mesh.wait_session(last["id"], on=away)["status"] == "completed"


def story(seed: int) -> str:
    with VirtualMesh(seed) as mesh:
        mesh.start(rituals=[ponder])
        session = mesh.submit(thought="?", branches=[{"ritual": "ponder", "task": "t"}] * 4)
        mesh.run_for(1.0)
        mesh.kill(mesh.leader())
        mesh.wait_session(session["id"], 3 * LONG_S)
        return f"{mesh.last_words()} {mesh.branches(session['id'])}"


def test_the_same_seed_gives_the_same_run() -> None:
    assert story(1) == story(1)
    assert story(1) != story(2)


def test_a_wait_that_fails_says_what_the_nodes_said_and_how_to_replay(mesh: VirtualMesh) -> None:
    mesh.start(cores=1)
    with pytest.raises(MeshTestError, match=r"still not so that pigs fly(.|\n)*core-1 \(runs\)(.|\n)*_SEED=5"):
        mesh.wait("pigs fly", lambda: False, 1.0)


@pytest.mark.parametrize("cores", [0, 2])
def test_numbers_that_make_no_mesh_are_refused(mesh: VirtualMesh, cores: int) -> None:
    with pytest.raises(MeshTestError, match="start 1, 3 or more"):
        mesh.start(cores=cores)


def test_it_is_not_for_tests_with_a_loop_of_their_own(mesh: VirtualMesh) -> None:
    async def test() -> None:
        mesh.start(cores=1)

    with pytest.raises(MeshTestError, match="make the test a plain function"):
        asyncio.run(test())
