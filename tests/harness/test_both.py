"""The same test code does the same to nodes on a virtual clock and to processes."""

import asyncio
import time
from typing import Any

import pytest

from node.rituals.context import Context
from node.rituals.definition import ritual
from node.testing import MeshTestError, MeshUnderTest

pytestmark = pytest.mark.meshnode(mode="both")


@ritual(version="3")
async def ponder(context: Context) -> dict[str, Any]:
    context.log("begun")
    await asyncio.sleep(0.5)
    return {"result": [context.attempt, context.random.random()], "patterns": ["slow"]}


@ritual
def grind(context: Context) -> list[Any]:
    time.sleep(0.5)
    return [context.task, sorted(context.seen(["slow", "never"]))]


@ritual(timeout_s=1.0)
async def endless(context: Context) -> None:
    await asyncio.Event().wait()


@ritual
def broken(context: Context) -> object:
    return object()


def submit(mesh: MeshUnderTest, ritual: str, branches: int = 1, on: str | None = None, **more: object) -> str:
    session = mesh.submit(thought="?", branches=[{"ritual": ritual, "task": "t", **more}] * branches, on=on)
    return str(session["id"])


def leads(mesh: MeshUnderTest, name: str) -> bool:
    return (((mesh.status(name) or {}).get("leader")) or {}).get("name") == name


def another_leads(mesh: MeshUnderTest, leader: str) -> str:
    others = [name for name in mesh.nodes() if name != leader]
    return mesh.wait("another leads", lambda: next((name for name in others if leads(mesh, name)), None))


def test_rituals_of_a_test(mesh: MeshUnderTest) -> None:
    mesh.start(rituals=[ponder, grind, endless, broken])
    first = submit(mesh, "ponder", 3, seed=1)
    assert mesh.wait_session(first)["status"] == "completed"
    assert mesh.branch(first, 0)["knowledge"]["result"] == [1, 0.13436424411240122]
    assert mesh.branches(first)[0]["ritual_version"] == "3"
    assert mesh.insight(first)["emergent_patterns"]
    second = submit(mesh, "grind")
    assert mesh.wait_session(second)["status"] == "completed"
    assert mesh.branches(second)[0]["duration_ms"] >= 500
    assert mesh.branch(second, 0)["knowledge"]["result"] == ["t", ["slow"]]
    for name, code in (("broken", "invalid_result"), ("endless", "deadline_exceeded")):
        failing = submit(mesh, name, attempts_max=1)
        assert mesh.wait_session(failing)["status"] == "failed"
        assert mesh.branches(failing)[0]["failure"]["code"] == code


def test_kill_and_restart(mesh: MeshUnderTest) -> None:
    leader = mesh.start()
    done = submit(mesh, "echo")
    mesh.wait_session(done)
    mesh.kill(leader)
    assert not mesh[leader].is_running
    assert mesh.status(leader) is None
    assert mesh.leader() != leader
    mesh.restart(leader)
    mesh.wait_ready()
    assert mesh.wait_session(done, on=leader)["status"] == "completed"
    mesh.stop(leader)
    assert mesh.leader() != leader


def test_pause_and_resume(mesh: MeshUnderTest) -> None:
    leader = mesh.start()
    mesh.pause(leader)
    other = another_leads(mesh, leader)
    done = submit(mesh, "echo", on=other)
    assert mesh.wait_session(done, on=other)["status"] == "completed"
    mesh.resume(leader)
    assert mesh.wait_ready() != leader
    assert mesh.wait_session(done, on=leader)["status"] == "completed"


def test_partition_and_heal(mesh: MeshUnderTest) -> None:
    leader = mesh.start()
    others = mesh.followers()
    mesh.partition([leader])
    other = another_leads(mesh, leader)
    done = submit(mesh, "echo", on=other)
    assert mesh.wait_session(done, on=other)["status"] == "completed"
    assert mesh[leader].call("GET", f"/v1/sessions/{done}").status == 404
    mesh.heal()
    assert mesh.wait_session(done, on=leader)["status"] == "completed"
    assert mesh.wait_ready() in others


def test_a_leader_that_hears_but_is_not_heard(mesh: MeshUnderTest) -> None:
    leader = mesh.start()
    for other in mesh.followers():
        mesh.cut(leader, other)
    another_leads(mesh, leader)
    mesh.heal()
    assert mesh.wait_ready() != leader


def test_a_slow_link(mesh: MeshUnderTest) -> None:
    leader = mesh.start()
    name = mesh.followers()[0]
    mesh.slow(name, leader, delay_s=0.2)
    began = mesh.now
    submit(mesh, "echo", on=name)
    assert mesh.now - began >= 0.4


def test_leaves_find_another_parent(mesh: MeshUnderTest) -> None:
    mesh.start(edges=1, leaves=2, rituals=[ponder])

    def parent(but: str = "") -> str | None:
        name = ((mesh.status("leaf-1") or {}).get("parent") or {}).get("name")
        return None if name == but else name

    first = mesh.wait("it hangs on a parent", parent)
    session = submit(mesh, "ponder", 60, on="leaf-1")
    mesh.kill(first)
    second = mesh.wait("it hangs on another parent", lambda: parent(but=first))
    assert mesh.wait_session(session, on=second)["status"] == "completed"
    mesh.kill("leaf-2")
    mesh.restart("leaf-2")
    mesh.restart(first)
    mesh.wait_ready()
    assert mesh.wait_session(submit(mesh, "ponder", 60), on="leaf-2")["status"] == "completed"


def test_what_is_not_there(mesh: MeshUnderTest) -> None:
    mesh.start(cores=1)
    with pytest.raises(MeshTestError, match="no node is called core-9; there are core-1"):
        mesh.kill("core-9")
    with pytest.raises(MeshTestError, match="no node is called core-9; there are core-1"):
        mesh.partition(["core-1"], ["core-9"])
    with pytest.raises(MeshTestError, match="core-1 runs: kill it or stop it first"):
        mesh.restart("core-1")
    with pytest.raises(MeshTestError, match=r"still not so that pigs fly(.|\n)*core-1"):
        mesh.wait("pigs fly", lambda: False, 0.1)
