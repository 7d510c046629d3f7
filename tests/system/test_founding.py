"""Who becomes part of a mesh, and who does not: secrets, names, seeds, clones, strangers, one file for all."""

import json
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.secrets import MeshSecret
from node.testing import Daemon, LocalMesh
from tests.system.lan import Lan
from tests.system.leaves import add_node

CORE_TOML = Path(__file__).parents[2] / "configs" / "core.toml"


def mesh_id(daemon: Daemon) -> str | None:
    return (daemon.status() or {}).get("mesh_id")


def logged(daemon: Daemon, *words: str) -> list[dict[str, Any]]:
    """Log lines that contain all the words."""
    lines = [line for line in daemon.log_text().splitlines() if all(word in line for word in words)]
    return [json.loads(line) for line in lines]


def test_alone_a_node_waits_and_says_so(mesh: LocalMesh) -> None:
    mesh["node-1"].start()
    mesh.wait("it says that it waits", lambda: "waiting for 2 more" in str(mesh["node-1"].status()))
    assert mesh["node-1"].call("GET", "/readyz").status == 503
    assert mesh["node-1"].call("GET", "/healthz").status == 200
    body = {"thought": "too early", "branches": [{"ritual": "echo", "task": "x"}]}
    refused = mesh["node-1"].call("POST", "/v1/sessions", body)
    assert refused.status == 503
    mesh.start()
    assert len({mesh_id(daemon) for daemon in mesh.running()}) == 1


def test_seeds_only_without_multicast(tmp_path: Path) -> None:
    with LocalMesh(tmp_path / "seeds", zeroconf=False, with_seeds=True) as mesh:
        mesh.start()
        session = mesh.submit(thought="x", branches=[{"ritual": "echo", "task": "hello"}])
        assert mesh.wait_session(session["id"])["status"] == "completed"


def test_one_seed_is_enough(tmp_path: Path) -> None:
    with LocalMesh(tmp_path / "one", zeroconf=False) as mesh:
        first = mesh["node-1"]
        for daemon in mesh.daemons.values():  # the same on all, also on the seed itself
            mesh.configure(daemon, 3, False, [f"127.0.0.1:{first.mesh_port}"], {})
        mesh.start()


def test_solo(tmp_path: Path) -> None:
    with LocalMesh(tmp_path / "solo", cores=1, zeroconf=False) as mesh:
        mesh.start()
        session = mesh.submit(thought="x", branches=[{"ritual": "echo", "task": "hello"}] * 3)
        assert mesh.wait_session(session["id"])["completed"] == 3
        mesh.kill("node-1")
        mesh.start()
        assert mesh.session(session["id"])["status"] == "completed"


def test_wrong_secret_is_refused_and_said_on_both_sides(tmp_path: Path) -> None:
    with LocalMesh(tmp_path / "mesh") as mesh:
        stranger = mesh["node-3"]
        other = tmp_path / "other-secret"
        MeshSecret.new().save(other)
        seeds = [f"127.0.0.1:{daemon.mesh_port}" for daemon in mesh.daemons.values()]
        mesh.configure(stranger, 3, True, seeds, {"mesh": {"secret_file": str(other)}})
        for daemon in mesh.daemons.values():
            daemon.start()
        for daemon in (mesh["node-1"], stranger):
            mesh.wait(f"{daemon.name} says why", lambda d=daemon: logged(d, "secret", "warning"))  # type: ignore[misc]
        # The right ones are not disturbed: with the secret corrected the mesh forms.
        stranger.stop()
        mesh.configure(stranger, 3, True, seeds, {})
        mesh.start()


def test_two_meshes_on_one_network(tmp_path: Path) -> None:
    with LocalMesh(tmp_path / "a", name="alpha") as a, LocalMesh(tmp_path / "b", name="beta") as b:
        for daemon in [*a.daemons.values(), *b.daemons.values()]:
            daemon.start()
        a.wait_ready()
        b.wait_ready()
        assert len({mesh_id(daemon) for daemon in a.running()}) == 1
        assert {mesh_id(daemon) for daemon in a.running()}.isdisjoint(mesh_id(daemon) for daemon in b.running())


def test_cloned_data_directory_is_refused(mesh: LocalMesh, tmp_path: Path) -> None:
    mesh.start()
    original = mesh["node-2"]
    with LocalMesh(tmp_path / "clones") as clones:
        clone = clones["node-2"]
        shutil.copytree(original.directory / "data", clone.directory / "data", ignore=shutil.ignore_patterns("lock*"))
        seeds = [f"127.0.0.1:{daemon.mesh_port}" for daemon in mesh.daemons.values()]
        clones.configure(clone, 3, True, seeds, {"mesh": {"name": "test", "secret_file": str(mesh.secret_file)}})
        clone.start()
        clones.wait("the clone is told", lambda: logged(clone, "cloned_identity"))
        session = mesh.submit(thought="undisturbed", branches=[{"ritual": "echo", "task": "x"}])
        assert mesh.wait_session(session["id"])["status"] == "completed"


def test_a_clone_that_starts_with_its_original_does_not_take_part_beside_it(mesh: LocalMesh) -> None:
    """Each may find a node first that is not linked to the other."""
    mesh.start()
    mesh.close()
    original, clone = mesh["node-2"], add_node(mesh, "clone", "core")
    shutil.copytree(original.directory / "data", clone.directory / "data", ignore=shutil.ignore_patterns("lock*"))
    pair, names = (original, clone), ("node-2", "clone")
    for daemon in (clone, mesh["node-1"], mesh["node-3"], original):
        daemon.start()

    def is_one_told() -> bool:
        return any(logged(daemon, "cloned_identity") or logged(daemon, "is a copy") for daemon in pair)

    def takes_one_part() -> bool:
        peers = [peer for name in ("node-1", "node-3") for peer in (mesh.status(name) or {}).get("peers", ())]
        linked = [peer["instance_id"] for peer in peers if peer["name"] in names and peer["state"] == "up"]
        return len(linked) == 2 and len(set(linked)) == 1

    mesh.wait("one of the two is told", is_one_told)
    mesh.wait("only one takes part", takes_one_part)
    session = mesh.submit(thought="undisturbed", branches=[{"ritual": "echo", "task": "x"}], on="node-1")
    assert mesh.wait_session(session["id"], on="node-1")["status"] == "completed"
    if not all(daemon.is_running for daemon in pair):
        ended = next(daemon for daemon in pair if not daemon.is_running)
        assert "one of the two data directories is a copy" in ended.log_text()


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(4096),
    "huge length": struct.pack(">I", 0xFFFFFFFF) + b"x" * 64,
    "half a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00",
    "nothing": b"",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_on_every_port_disturbs_nobody(mesh: LocalMesh, garbage: bytes) -> None:
    mesh.start()
    sockets = []
    try:
        for daemon in mesh.daemons.values():
            for port in (daemon.mesh_port, daemon.http_port):
                for _ in range(20):
                    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
                    connection.sendall(garbage)
                    sockets.append(connection)
        session = mesh.submit(thought="undisturbed", branches=[{"ritual": "echo", "task": "x"}] * 10)
        assert mesh.wait_session(session["id"])["completed"] == 10
    finally:
        for connection in sockets:
            connection.close()


@pytest.fixture
def lan_mesh(tmp_path: Path, needs_namespaces: None) -> Iterator[tuple[Lan, LocalMesh]]:
    """Three machines on a LAN, each started with configs/core.toml exactly as it is."""
    with Lan(3) as lan, LocalMesh(tmp_path / "lan") as mesh:
        for number, daemon in enumerate(mesh.daemons.values()):
            home = daemon.directory / "home"
            (home / ".config" / "meshnode").mkdir(parents=True)
            shutil.copy(mesh.secret_file, home / ".config" / "meshnode" / "secret")
            (home / ".config" / "meshnode" / "secret").chmod(0o600)
            shutil.copy(CORE_TOML, daemon.config_path)
            daemon.prefix = lan.prefix(number)
            daemon.http_host, daemon.http_port = "127.0.0.1", 7780
            daemon.environment = {"HOME": str(home)}
            daemon.connect = lambda host, port, number=number: lan.connect(number, host, port)
        yield lan, mesh


def test_the_same_file_on_three_machines(lan_mesh: tuple[Lan, LocalMesh]) -> None:
    _, mesh = lan_mesh
    for daemon in mesh.daemons.values():
        daemon.start()
    mesh.wait("all are ready", lambda: all_ready(mesh))
    assert len({mesh_id(daemon) for daemon in mesh.running()}) == 1
    session = mesh.submit(thought="over the LAN", branches=[{"ritual": "echo", "task": "x"}] * 20)
    assert mesh.wait_session(session["id"])["completed"] == 20


def test_unplugged_leader_is_replaced_and_comes_back(lan_mesh: tuple[Lan, LocalMesh]) -> None:
    lan, mesh = lan_mesh
    daemons = list(mesh.daemons.values())
    for daemon in daemons:
        daemon.start()
    mesh.wait("all are ready", lambda: all_ready(mesh))
    number = next(i for i, daemon in enumerate(daemons) if is_leader(daemon))
    other = daemons[(number + 1) % 3]
    branches = [{"ritual": "wait", "task": f"wait {i}", "parameters": {"seconds": 1.0}} for i in range(400)]
    session = mesh.submit(thought="cable", branches=branches, on=other.name)
    lan.unplug(number)
    ended = mesh.wait_session(session["id"], on=other.name)
    assert (ended["status"], ended["completed"]) == ("completed", 400)
    lan.plug(number)

    def is_back() -> bool:
        answer = daemons[number].call("GET", f"/v1/sessions/{session['id']}?level=stale")
        return answer.status == 200 and answer.body["session"]["status"] == "completed"

    mesh.wait("the unplugged node has caught up", is_back, 40)


def all_ready(mesh: LocalMesh) -> bool:
    return all((daemon.status() or {}).get("ready") for daemon in mesh.daemons.values())


def is_leader(daemon: Daemon) -> bool:
    status = daemon.status() or {}
    return bool(status and (status["leader"] or {}).get("node_id") == status["node_id"])
