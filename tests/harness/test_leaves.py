"""Leaf nodes on a virtual clock."""

import asyncio

from node.rituals.context import Context
from node.rituals.definition import ritual
from node.testing import VirtualMesh


@ritual(timeout_s=60.0)
async def dawdle(context: Context) -> int:
    await asyncio.sleep(float(context.parameters.get("seconds", 1.0)))
    return context.attempt


def parent(mesh: VirtualMesh, leaf: str = "leaf-1") -> str:
    status = mesh.status(leaf) or {}
    return str((status.get("parent") or {}).get("name", "")) if status.get("ready") else ""


def test_a_parent_without_a_leader_lets_its_leaves_go() -> None:
    with VirtualMesh(seed=1) as mesh:
        mesh.start(cores=3, leaves=1, rituals=[dawdle])
        alone = mesh.wait("it has a parent", lambda: parent(mesh))
        others = [name for name in mesh.nodes() if name.startswith("core") and name != alone]
        for other in others:
            mesh.cut(alone, other)
            mesh.cut(other, alone)
        mesh.wait("it hangs on one that can do something for it", lambda: parent(mesh) in others, 60)
        session = mesh.submit(thought="?", branches=[{"ritual": "dawdle", "task": "t"}] * 30, on=others[0])
        assert mesh.wait_session(session["id"], on=others[0])["status"] == "completed"
        mesh.heal()


def test_when_nobody_leads_leaves_stay_and_deliver_later() -> None:
    with VirtualMesh(seed=2) as mesh:
        mesh.start(cores=3, leaves=1, rituals=[dawdle])
        mesh.wait("it has a parent", lambda: parent(mesh))
        branches = [{"ritual": "dawdle", "task": "t", "parameters": {"seconds": 4.0}}] * 40
        session = str(mesh.submit(thought="?", branches=branches, on="core-1")["id"])
        mesh.run_for(1.0)
        for name in ("core-1", "core-2", "core-3"):
            mesh.pause(name)
        mesh.run_for(3.5)
        for name in ("core-1", "core-2", "core-3"):
            mesh.resume(name)
        assert mesh.wait_session(session, 120)["status"] == "completed"
        assert mesh.wait("it is back", lambda: parent(mesh))


def test_a_way_of_seconds_is_better_than_none() -> None:
    with VirtualMesh(seed=4) as mesh:
        mesh.start(cores=3, leaves=1, rituals=[dawdle])
        first = mesh.wait("it has a parent", lambda: parent(mesh))
        for name in ("core-1", "core-2", "core-3"):
            mesh.slow("leaf-1", name, delay_s=0.9)
        mesh.kill(first)
        mesh.wait("it hangs on another one", lambda: parent(mesh) not in ("", first), 60)
