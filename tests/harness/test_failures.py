"""Nodes die, pause and restart while sessions run: nothing accepted is lost, nothing is recorded twice."""

import collections
import http.client
from typing import Any

import pytest

from node.testing import Harness, MeshUnderTest

pytestmark = pytest.mark.meshnode(mode="both")

WAITS = [{"ritual": "wait", "task": f"wait {i}", "parameters": {"seconds": 0.4}} for i in range(60)]


def check_recorded_once(mesh: Harness, session_id: str, count: int) -> None:
    """Every branch is completed, once, by its last attempt; earlier attempts ended otherwise."""
    branches = mesh.branches(session_id)
    assert sorted(branch["branch_index"] for branch in branches) == list(range(count))
    for branch in branches:
        assert branch["status"] == "completed"
        if branch["attempt"] > 1:
            detail = mesh.any_running().call("GET", f"/v1/branches/{branch['id']}").expect(200)
            statuses = collections.Counter(attempt["status"] for attempt in detail["attempts"])
            assert statuses["completed"] == 1, detail["attempts"]


def wait_progress(mesh: MeshUnderTest, session_id: str, completed: int) -> None:
    mesh.wait(f"{completed} branches are completed", lambda: mesh.session(session_id)["completed"] >= completed, 60)


def test_leader_killed_in_mid_session(mesh: MeshUnderTest) -> None:
    leader = mesh.start()
    branches = [{"ritual": "wait", "task": f"wait {i}", "parameters": {"seconds": 0.5}} for i in range(900)]
    session = mesh.submit(thought="survive", branches=branches)
    wait_progress(mesh, session["id"], 250)
    mesh.kill(leader)
    assert mesh.wait_session(session["id"])["status"] == "completed"
    check_recorded_once(mesh, session["id"], 900)
    members = {m["name"]: m["status"] for m in mesh.any_running().call("GET", "/v1/members").expect(200)["members"]}
    assert members[leader] == "dead"
    mesh.restart(leader)
    mesh.wait_ready()
    check_recorded_once(mesh, session["id"], 900)


def test_everything_killed_and_restarted(mesh: MeshUnderTest) -> None:
    mesh.start()
    done = mesh.submit(thought="finished before", branches=WAITS[:5])
    mesh.wait_session(done["id"])
    running = mesh.submit(thought="under way", branches=WAITS)
    for name in mesh.nodes():
        mesh.kill(name)
    for name in mesh.nodes():
        mesh.restart(name)
    mesh.wait_ready()
    assert mesh.wait_session(running["id"])["status"] == "completed"
    check_recorded_once(mesh, running["id"], len(WAITS))
    for name in mesh.nodes():
        assert mesh.session(done["id"], on=name)["status"] == "completed"
        insight = mesh[name].call("GET", f"/v1/sessions/{done['id']}/insight").expect(200)
        assert insight["insight"]["synthesis"]


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_node_paused_for_ten_seconds(mesh: MeshUnderTest, who: str) -> None:
    leader = mesh.start()
    victim = leader if who == "leader" else mesh.followers()[0]
    others = [name for name in mesh.nodes() if name != victim]
    branches = [{"ritual": "wait", "task": f"wait {i}", "parameters": {"seconds": 1.0}} for i in range(600)]
    session = mesh.submit(thought="pause", branches=branches, on=others[0])
    mesh.pause(victim)
    paused_at = mesh.now
    assert mesh.wait_session(session["id"], on=others[0])["status"] == "completed"
    mesh.wait("ten seconds have passed", lambda: mesh.now > paused_at + 10)
    mesh.resume(victim)
    mesh.wait_ready()

    def is_caught_up() -> bool:
        answer = mesh[victim].call("GET", f"/v1/sessions/{session['id']}")
        return answer.status == 200 and bool(answer.body["session"]["status"] == "completed")

    mesh.wait("the paused node has caught up", is_caught_up)
    check_recorded_once(mesh, session["id"], 600)
    after = mesh.submit(thought="afterwards", branches=WAITS[:3], on=victim)
    assert mesh.wait_session(after["id"])["status"] == "completed"


def test_majority_lost_refuses_writes_and_answers_reads(mesh: MeshUnderTest) -> None:
    mesh.start()
    done = mesh.submit(thought="before", branches=WAITS[:2])
    mesh.wait_session(done["id"])
    survivor, *victims = mesh.nodes()
    for name in victims:
        mesh.kill(name)
    body = {"thought": "nobody can accept this", "branches": WAITS[:1]}
    answer = mesh[survivor].call("POST", "/v1/sessions", body, timeout_s=30)
    assert answer.status in (503, 504), answer
    assert answer.body["code"] in ("no_leader", "timeout")
    assert answer.body["fix"]
    assert mesh.session(done["id"], on=survivor)["status"] == "completed"
    for name in victims:
        mesh.restart(name)
    mesh.wait_ready()
    assert mesh.session(done["id"], on=survivor)["status"] == "completed"


def test_stop_hands_work_back(mesh: MeshUnderTest) -> None:
    leader = mesh.start()
    branches = [{"ritual": "wait", "task": f"wait {i}", "parameters": {"seconds": 8}} for i in range(6)]
    session = mesh.submit(thought="drain", branches=branches)
    mesh.wait("all run", lambda: mesh.session(session["id"])["processing"] == 6)
    mesh.stop(leader)
    assert mesh.wait_session(session["id"])["status"] == "completed"
    check_recorded_once(mesh, session["id"], 6)


def test_write_on_every_node_is_read_on_every_node(mesh: MeshUnderTest) -> None:
    mesh.start()
    for writer in mesh.nodes():
        session = mesh.submit(thought=f"written on {writer}", branches=WAITS[:1], on=writer)
        for reader in mesh.nodes():
            path = f"/v1/sessions/{session['id']}?level=linearizable"
            answer = mesh[reader].call("GET", path).expect(200)
            assert answer["session"]["thought"] == f"written on {writer}"
            assert answer["level"] == "linearizable"


def test_submission_repeated_over_a_leader_change_is_one_session(mesh: MeshUnderTest) -> None:
    leader = mesh.start()
    body: dict[str, Any] = {"id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "thought": "once", "branches": WAITS[:4]}
    mesh[leader].call("POST", "/v1/sessions", body).expect(201)
    mesh.kill(leader)

    def repeated() -> bool:
        try:
            return mesh.any_running().call("POST", "/v1/sessions", body).status == 200
        except (OSError, http.client.HTTPException):
            return False

    mesh.wait("the repeat is answered with the first", repeated)
    assert mesh.wait_session(body["id"])["total_branches"] == 4
    listed = mesh.any_running().call("GET", "/v1/sessions").expect(200)["sessions"]
    assert [session["id"] for session in listed] == [body["id"]]
    other = mesh.any_running().call("POST", "/v1/sessions", {**body, "thought": "twice"})
    assert (other.status, other.body["code"]) == (409, "session_exists")


def test_rolling_restart_under_load_fails_nothing(mesh: MeshUnderTest) -> None:
    mesh.start(settings={"execution": {"async_slots": 4}})
    seconds = [0.3, 3.0, 0.3, 0.3]
    branches = [
        {"ritual": "wait", "task": f"wait {i}", "parameters": {"seconds": seconds[i % 4]}, "attempts_max": 1}
        for i in range(48)
    ]
    session = mesh.submit(thought="roll", branches=branches)
    for name in mesh.nodes():
        mesh.stop(name)
        mesh.restart(name)
        mesh.wait_ready()
    ended = mesh.wait_session(session["id"])
    assert (ended["completed"], ended["failed"]) == (48, 0)
    check_recorded_once(mesh, session["id"], 48)
