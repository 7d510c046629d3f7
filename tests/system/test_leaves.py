"""Leaf nodes: real processes that hang on others, work, are cut off, and come back."""

import http.client
import json
import signal
from pathlib import Path

from node.testing import Daemon, LocalMesh
from tests.system.leaves import (
    add_leaf,
    add_node,
    attempts,
    branches,
    only_leaves,
    parent_of,
    wait_parent,
    waits,
    where,
)


def small_mesh(directory: Path, cores: int = 1) -> LocalMesh:
    return LocalMesh(directory, cores=cores, zeroconf=False, with_seeds=True, settings=only_leaves())


def event(daemon: Daemon, name: str) -> dict[str, object]:
    lines = [json.loads(line) for line in daemon.log_text().splitlines() if line.startswith("{")]
    return next((line for line in lines if line["event"] == name), {})


def test_a_leaf_executes_and_any_node_shows_what_it_says(tmp_path: Path) -> None:
    with small_mesh(tmp_path / "mesh", cores=3) as mesh:
        leaf = add_leaf(mesh)
        mesh.start()
        parent = wait_parent(mesh, leaf)
        session = mesh.submit(thought="x", branches=waits(40, 3.0), on="node-1")
        others = [mesh[name] for name in ("node-1", "node-2", "node-3")]

        def is_shown_everywhere() -> bool:
            rows = [row for row in branches(mesh["node-1"], session["id"]) if row["status"] == "processing"]
            mine = [row for row in rows if row["node_id"] == (leaf.status() or {})["node_id"]]
            details = [[n.call("GET", f"/v1/branches/{row['id']}").body for n in others] for row in mine[:3]]
            return any(all((one["branch"]["live"] or {}).get("progress") for one in detail) for detail in details)

        mesh.wait("all nodes show the progress of what the leaf executes", is_shown_everywhere)
        assert mesh.wait_session(session["id"], on="node-2")["completed"] == 40
        assert where(mesh["node-3"], session["id"])["leaf-1"] > 30
        members = {row["name"]: row for row in mesh["node-1"].call("GET", "/v1/members").expect(200)["members"]}
        assert members["leaf-1"]["parent"] == members[parent]["node_id"]


def test_a_leaf_answers_for_itself_and_passes_the_rest_on(tmp_path: Path) -> None:
    with small_mesh(tmp_path / "mesh") as mesh:
        leaf = add_leaf(mesh)
        mesh.start()
        wait_parent(mesh, leaf)
        assert leaf.call("GET", "/healthz").status == 200
        assert leaf.call("GET", "/status").expect(200)["tier"] == "leaf"
        session = mesh.submit(thought="by the leaf", branches=waits(3, 0.3), on="leaf-1")
        assert mesh.wait_session(session["id"], on="leaf-1")["completed"] == 3
        assert leaf.call("GET", "/v1/nothing").body["code"] == "unknown_route"
        assert leaf.call("POST", "/v1/sessions", {"thoguht": "x"}).body["code"] == "unknown_key"
        listed = leaf.call("GET", "/v1/sessions?level=linearizable").expect(200)["sessions"]
        assert [row["id"] for row in listed] == [session["id"]]
        events = http.client.HTTPConnection(leaf.http_host, leaf.http_port, timeout=20)
        events.request("GET", "/v1/events?after=0")
        stream = events.getresponse()
        seen = b""
        while b"session_completed" not in seen:
            seen += stream.read1(4096)
        events.close()
        status = leaf.call("GET", "/status", timeout_s=5).expect(200)
        assert status["results"]["waiting"] == 0
        mesh.kill("node-1")
        mesh.wait("it has noticed", lambda: not (leaf.status() or {"ready": True})["ready"])
        assert leaf.call("GET", "/v1/sessions").body["code"] == "unavailable"
        assert leaf.call("GET", "/readyz").status == 503


def test_a_parent_dies_and_its_leaf_goes_on_under_another(tmp_path: Path) -> None:
    with small_mesh(tmp_path / "mesh", cores=3) as mesh:
        leaf = add_leaf(mesh)
        mesh.start()
        parent = wait_parent(mesh, leaf)
        survivor = next(name for name in ("node-1", "node-2", "node-3") if name != parent)
        session = mesh.submit(thought="x", branches=waits(20, 4.0), on=survivor)
        me = (leaf.status() or {})["node_id"]

        def running() -> list[dict[str, object]]:
            rows = branches(mesh[survivor], session["id"])
            return [row for row in rows if row["node_id"] == me and row["status"] == "processing"]

        before = mesh.wait("the leaf works", lambda: rows if len(rows := running()) >= 10 else None)
        mesh.kill(parent)
        wait_parent(mesh, leaf, other_than=parent)
        assert mesh.wait_session(session["id"], on=survivor)["completed"] == 20
        after = {row["branch_index"]: row for row in branches(mesh[survivor], session["id"])}
        for row in before:
            assert after[row["branch_index"]]["attempt"] == row["attempt"], "what it was doing was not done again"
            assert after[row["branch_index"]]["node_id"] == me


def test_what_a_leaf_finished_alone_is_delivered_after_its_restart(tmp_path: Path) -> None:
    with small_mesh(tmp_path / "mesh") as mesh:
        leaf = add_leaf(mesh)
        mesh.start()
        wait_parent(mesh, leaf)
        session = mesh.submit(thought="x", branches=waits(8, 3.0), on="node-1")
        me = (leaf.status() or {})["node_id"]

        def taken() -> list[int]:
            rows = branches(mesh["node-1"], session["id"])
            return [row["branch_index"] for row in rows if row["node_id"] == me and row["status"] == "processing"]

        mine = mesh.wait("the leaf works", lambda: rows if len(rows := taken()) >= 7 else None)
        mesh["node-1"].signal(signal.SIGKILL)
        mesh.kill("node-1")
        mesh.wait(
            "the results are kept",
            lambda: kept(leaf) >= 1 and (leaf.status() or {}).get("slots", {}).get("async_busy") == 0,
        )
        mesh.kill("leaf-1")
        mesh["node-1"].start()
        mesh["leaf-1"].start()
        wait_parent(mesh, leaf)
        assert mesh.wait_session(session["id"], on="node-1")["completed"] == 8
        after = {row["branch_index"]: row for row in branches(mesh["node-1"], session["id"])}
        assert [after[index]["attempt"] for index in mine] == [1] * len(mine)
        mesh.wait("nothing is left to deliver", lambda: kept(leaf) == 0)


def kept(leaf: Daemon) -> int:
    return int(((leaf.status() or {}).get("results") or {}).get("kept_files", 0))


def test_what_was_done_elsewhere_meanwhile_is_kept_as_evidence(tmp_path: Path) -> None:
    with small_mesh(tmp_path / "mesh") as mesh:
        leaf = add_leaf(mesh)
        mesh.start()
        wait_parent(mesh, leaf)
        session = mesh.submit(thought="x", branches=waits(2, 3.0), on="node-1")
        me = (leaf.status() or {})["node_id"]

        def mine() -> dict[str, object] | None:
            rows = branches(mesh["node-1"], session["id"])
            return next((row for row in rows if row["node_id"] == me and row["status"] == "processing"), None)

        branch = mesh.wait("a branch is the leaf's", mine)
        mesh.wait("the leaf executes it", lambda: (leaf.status() or {}).get("slots", {}).get("async_busy", 0) >= 1)
        leaf.signal(signal.SIGSTOP)
        assert mesh.wait_session(session["id"], on="node-1")["completed"] == 2
        leaf.signal(signal.SIGCONT)

        def is_kept() -> bool:
            first = attempts(mesh["node-1"], branch)[0]
            return first["status"] == "lost" and first["late_result_digest"] is not None

        mesh.wait("the late result is evidence", is_kept)
        mesh.wait("the leaf has dropped it", lambda: (leaf.status() or {}).get("results", {}).get("superseded", 0) >= 1)
        assert (leaf.status() or {})["results"]["waiting"] == 0


def test_why_there_is_no_parent_is_said(tmp_path: Path) -> None:
    with small_mesh(tmp_path / "mesh") as mesh, small_mesh(tmp_path / "other") as other:
        lonely = add_leaf(mesh, "leaf-lonely", settings={"mesh": {"seeds": ["127.0.0.1:1"]}})
        stranger = add_leaf(mesh, "leaf-stranger")
        stranger.config_path.write_text(
            stranger.config_path.read_text().replace(str(mesh.secret_file), str(other.secret_file))
        )
        elsewhere = add_leaf(mesh, "leaf-elsewhere", settings={"mesh": {"name": "elsewhere"}})
        mesh["node-1"].start()
        for leaf in (lonely, stranger, elsewhere):
            leaf.start()

        def says(leaf: Daemon, words: str) -> None:
            mesh.wait(f"{leaf.name} says {words!r}", lambda: words in str((leaf.status() or {}).get("warnings")))

        says(lonely, "no parent answers: 127.0.0.1:1: ")
        says(stranger, "the two nodes have different mesh secrets")
        says(elsewhere, "the meshes have different names")
        assert event(stranger, "no_parent")["level"] == "warning"


def test_a_leaf_waits_for_a_mesh_to_be_founded(tmp_path: Path) -> None:
    with small_mesh(tmp_path / "mesh", cores=3) as mesh:
        leaf = add_leaf(mesh, seeds=["node-1"])
        mesh["node-1"].start()
        leaf.start()
        mesh.wait(
            "it says so", lambda: "does not belong to a working mesh" in str((leaf.status() or {}).get("warnings"))
        )
        mesh["node-2"].start()
        mesh["node-3"].start()
        assert wait_parent(mesh, leaf) == "node-1"
        assert parent_of(leaf) == "node-1"


def test_leaves_go_where_there_is_room_when_an_edge_joins(tmp_path: Path) -> None:
    with small_mesh(tmp_path / "mesh") as mesh:
        leaves = [add_leaf(mesh, f"leaf-{number}") for number in range(6)]
        mesh.start()
        for leaf in leaves:
            assert wait_parent(mesh, leaf) == "node-1"
        session = mesh.submit(thought="x", branches=waits(40, 8.0), on="node-1")
        mesh.wait("all work", lambda: mesh.session(session["id"], on="node-1")["processing"] == 40)
        edge = add_node(mesh, "edge-1", "edge")
        edge.start()

        def has_moved() -> bool:
            parents = [parent_of(leaf) for leaf in leaves]
            return parents.count("edge-1") >= 3

        mesh.wait("some hang on the edge", has_moved, 60)
        assert mesh.wait_session(session["id"], on="node-1")["completed"] == 40
        assert {row["attempt"] for row in branches(mesh["node-1"], session["id"])} == {1}, "moving costs no work"
        mesh["node-1"].call("POST", "/v1/members/edge-1/change", {"action": "drain"}).expect(200)
        for leaf in leaves:
            mesh.wait(f"{leaf.name} is back", lambda leaf=leaf: parent_of(leaf) == "node-1")  # type: ignore[misc]


def test_a_leaf_finds_its_parent_by_multicast_and_remembers_it(tmp_path: Path) -> None:
    with LocalMesh(tmp_path / "mesh", cores=1, settings={"mesh": {"interfaces": ["lo"]}}) as mesh:
        leaf = add_leaf(mesh, seeds=[], zeroconf=True, settings={"mesh": {"interfaces": ["lo"]}})
        mesh.start()
        assert wait_parent(mesh, leaf) == "node-1"
        assert event(leaf, "looking_by_multicast")
        assert leaf.stop() == 0
        leaf.log_path.unlink()
        leaf.start()
        wait_parent(mesh, leaf)
        assert not event(leaf, "looking_by_multicast"), "it knows where to go"
