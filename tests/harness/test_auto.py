"""`tier = "auto"`: the mesh chooses, and says why."""

from pathlib import Path
from typing import Any

import pytest

from node.machine import look
from node.testing import MeshUnderTest
from node.tiers import leaf_for

pytestmark = pytest.mark.meshnode(mode="both")

SETTINGS: dict[str, dict[str, object]] = {"node": {"tier": "auto"}, "mesh": {"voter_grace_s": 2, "bootstrap_expect": 3}}
ECHO = [{"ritual": "echo", "task": "hello"}]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path) -> None:
    if (small := leaf_for(look(tmp_path))) is not None:
        pytest.skip(f"a mesh of such nodes needs a larger machine: {small.why}")


def tiers(mesh: MeshUnderTest) -> dict[str, str]:
    return {node.name: (node.status() or {}).get("tier", "") for node in mesh.running()}


def registered(mesh: MeshUnderTest, on: str) -> dict[str, str]:
    return {row["name"]: row["tier"] for row in mesh.call(on, "GET", "/v1/members").expect(200)["members"]}


def of(tier: str, mesh: MeshUnderTest) -> set[str]:
    return {name for name, one in tiers(mesh).items() if one == tier}


def has(mesh: MeshUnderTest, cores: int, edges: int) -> bool:
    return (len(of("core", mesh)), len(of("edge", mesh))) == (cores, edges)


def voters(mesh: MeshUnderTest, name: str) -> set[str]:
    return {voter["name"] for voter in mesh.status(name)["voters"]}


def standing(mesh: MeshUnderTest, name: str) -> Any:
    return ((mesh.status(name) or {}).get("membership") or {}).get("standing")


def test_of_five_machines_three_become_core_and_an_edge_replaces_one_that_is_lost(mesh: MeshUnderTest) -> None:
    mesh.start(cores=5, settings=SETTINGS)
    mesh.wait("three are Core", lambda: has(mesh, 3, 2))
    cores, edges = of("core", mesh), of("edge", mesh)
    for name in mesh.nodes():
        status = mesh.status(name) or {}
        assert voters(mesh, name) == cores
        assert status["tier_why"].startswith("auto: ")
        mesh.wait("the members say so", lambda name=name: registered(mesh, name) == tiers(mesh))  # type: ignore[misc]
    mesh.wait("they stand by", lambda: {standing(mesh, name) for name in edges} == {"standby"})

    stopped = min(edges)
    mesh.stop(stopped)
    mesh.restart(stopped)
    mesh.wait("it is what it was", lambda: tiers(mesh).get(stopped) == "edge")
    mesh.wait_ready()

    lost = max(cores - {mesh.leader()})
    mesh.kill(lost)
    mesh.wait("an Edge has become Core", lambda: has(mesh, 3, 1), 60)
    promoted = (of("core", mesh) - cores).pop()
    mesh.wait("the lost one does not vote", lambda: lost not in voters(mesh, promoted))
    mesh.wait("and registered as such", lambda: registered(mesh, promoted)[promoted] == "core")
    session = mesh.submit(thought="x", branches=ECHO, on=promoted)
    assert mesh.wait_session(session["id"], on=promoted)["status"] == "completed"
    mesh.stop(promoted)
    mesh.restart(promoted)
    mesh.wait("it still is", lambda: tiers(mesh).get(promoted) == "core")
    mesh.restart(lost)
    mesh.wait("the lost one is an Edge when it comes back", lambda: tiers(mesh).get(lost) == "edge", 60)
