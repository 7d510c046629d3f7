"""Sessions as their users see them, over three nodes."""

import pytest

from node.testing import MeshUnderTest

pytestmark = pytest.mark.meshnode(mode="both")


def test_progress_of_a_running_branch_is_seen_on_every_node(mesh: MeshUnderTest) -> None:
    mesh.start()
    branches = [{"ritual": "wait", "task": f"wait {i}", "parameters": {"seconds": 20}} for i in range(3)]
    session = mesh.submit(thought="progress", branches=branches)

    def seen_everywhere() -> bool:
        for node in mesh.running():
            for index in range(3):
                detail = node.call("GET", f"/v1/sessions/{session['id']}/branches/{index}").expect(200)
                if not (detail["branch"]["live"] or {}).get("progress"):
                    return False
        return True

    mesh.wait("every node shows the progress of every branch", seen_everywhere)
    cancelled = mesh.any_running().call("POST", f"/v1/sessions/{session['id']}/cancel", {"reason": "seen enough"})
    assert cancelled.expect(200)["session"]["status"] == "cancelled"
    mesh.wait(
        "nothing runs any more",
        lambda: all((node.status() or {}).get("slots", {}).get("async_busy") == 0 for node in mesh.running()),
    )


def test_a_hundred_async_branches_run_at_once_on_one_node(mesh: MeshUnderTest) -> None:
    mesh.start()
    branches = [{"ritual": "wait", "task": f"wait {i}", "parameters": {"seconds": 5}} for i in range(300)]
    session = mesh.submit(thought="all at once", branches=branches)
    mesh.wait(
        "a hundred run on each of the three nodes",
        lambda: all((node.status() or {}).get("slots", {}).get("async_busy") == 100 for node in mesh.running()),
    )
    assert mesh.wait_session(session["id"])["completed"] == 300


def test_failures_of_rituals_are_told_with_their_reason(mesh: MeshUnderTest) -> None:
    mesh.start()
    branches = [
        {"ritual": "echo", "task": "fine"},
        {"ritual": "wait", "task": "too long", "parameters": {"seconds": 60}, "timeout_s": 0.5, "attempts_max": 2},
    ]
    session = mesh.submit(thought="one of two", branches=branches)
    ended = mesh.wait_session(session["id"])
    assert (ended["status"], ended["completed"], ended["failed"]) == ("completed", 1, 1)
    detail = mesh.any_running().call("GET", f"/v1/sessions/{session['id']}/branches/1").expect(200)
    assert [attempt["failure"]["code"] for attempt in detail["attempts"]] == ["deadline_exceeded"] * 2
    nodes = [attempt["node_id"] for attempt in detail["attempts"]]
    assert nodes[0] != nodes[1], "a retry goes elsewhere"
    insight = mesh.any_running().call("GET", f"/v1/sessions/{session['id']}/insight").expect(200)["insight"]
    assert (insight["branches_used"], insight["branches_failed"]) == (1, 1)
    assert "1 of 2" in insight["synthesis"]
