"""An Edge whose Core nodes are all gone: it says so, answers with what it has, and delivers what it finished."""

from typing import Any

import pytest

from node.testing import MeshUnderTest

pytestmark = pytest.mark.meshnode(mode="both")


def status(mesh: MeshUnderTest) -> dict[str, Any]:
    return mesh.status("edge-1") or {}


def lose_every_core(mesh: MeshUnderTest) -> list[str]:
    cores = [name for name in mesh.nodes() if name.startswith("core")]
    for name in cores:
        mesh.kill(name)
    mesh.wait("the Edge says so", lambda: status(mesh) and status(mesh)["leader"] is None)
    return cores


def test_a_branch_that_ends_meanwhile_is_recorded_once_when_they_return(mesh: MeshUnderTest) -> None:
    mesh.start(edges=1)
    on_edge = [{"ritual": "wait", "task": "t", "parameters": {"seconds": 2}}]
    session = mesh.submit(thought="x", branches=on_edge, require={"name": ["edge-1"]}, on="edge-1")

    def runs() -> bool:
        return mesh.holder(session["id"], on="edge-1") == "edge-1"

    mesh.wait("the Edge runs it", runs)
    cores = lose_every_core(mesh)
    said = next(warning for warning in status(mesh)["warnings"] if "no leader is known" in warning)
    assert said.endswith(" s old")
    mesh.wait("it has ended", lambda: status(mesh)["slots"]["executed"] >= 1)
    answer = mesh.call("edge-1", "GET", f"/v1/sessions/{session['id']}").expect(200)
    assert answer["session"]["status"] == "processing"
    assert answer["age_ms"] > 0
    refused = mesh.call("edge-1", "GET", f"/v1/sessions/{session['id']}?level=leader", timeout_s=60)
    assert refused.status == 503
    mesh.wait("it is not ready", lambda: mesh.call("edge-1", "GET", "/readyz").status == 503)
    assert mesh.call("edge-1", "GET", "/healthz").status == 200
    for name in cores:
        mesh.restart(name)
    assert mesh.wait_session(session["id"], on="edge-1")["status"] == "completed"
    attempts = mesh.branch(session["id"], 0, on="edge-1")["attempts"]
    assert [(one["attempt"], one["status"]) for one in attempts] == [(1, "completed")]


def test_it_starts_without_them_and_serves_what_it_has(mesh: MeshUnderTest) -> None:
    mesh.start(edges=1)
    session = mesh.submit(thought="x", branches=[{"ritual": "echo", "task": "hello"}], on="edge-1")
    assert mesh.wait_session(session["id"], on="edge-1")["status"] == "completed"
    cores = lose_every_core(mesh)
    mesh.kill("edge-1")
    mesh.restart("edge-1")

    def serves() -> bool:
        try:
            return bool(mesh.session(session["id"], on="edge-1")["status"] == "completed")
        except Exception:  # it is starting
            return False

    mesh.wait("it serves", serves)
    assert status(mesh)["tier_why"] == "configured"
    assert mesh.call("edge-1", "GET", "/readyz").status == 503
    for name in cores:
        mesh.restart(name)
    assert mesh.wait_ready() in cores
