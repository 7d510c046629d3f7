"""A Leaf in a network namespace that nobody can reach: its only way out is one that translates addresses."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.testing import Daemon, LocalMesh
from tests.system.lan import Lan
from tests.system.leaves import add_leaf, only_leaves, wait_parent, waits, where

pytestmark = pytest.mark.usefixtures("needs_namespaces")


@contextlib.contextmanager
def way_out(lan: Lan, number: int, port: int) -> Iterator[int]:
    """A port inside the namespace whose connections go on, from an address of this side, to `port` of this side."""
    listener = lan.inside(number, lambda: socket.create_server(("127.0.0.1", 0)))
    made: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                inside, _ = listener.accept()
                try:
                    outside = socket.create_connection(("127.0.0.1", port), 5)
                except OSError:
                    inside.close()
                    continue
                made.extend((inside, outside))
                for ends in ((inside, outside), (outside, inside)):
                    threads.append(threading.Thread(target=pump, args=ends))
                    threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for end in made:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        for end in made:
            end.close()


def listening(daemon: Daemon) -> set[int]:
    """Ports on which anybody listens in the daemon's namespace."""
    assert daemon.process is not None
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{daemon.process.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def test_it_works_and_comes_back_without_being_reachable(tmp_path: Path) -> None:
    settings = only_leaves()
    with (
        Lan(1) as lan,
        LocalMesh(tmp_path / "mesh", cores=1, zeroconf=False, settings=settings) as mesh,
        way_out(lan, 0, mesh["node-1"].mesh_port) as port,
    ):
        leaf = add_leaf(mesh, settings={"mesh": {"seeds": [f"127.0.0.1:{port}"]}})
        leaf.prefix = lan.prefix(0)
        leaf.connect = lambda host, port: lan.connect(0, host, port)
        mesh["node-1"].start()
        mesh.wait("the core serves", lambda: mesh["node-1"].status(), 30)
        leaf.start()
        assert wait_parent(mesh, leaf) == "node-1"
        assert listening(leaf) == {leaf.http_port, port}
        session = mesh.submit(thought="x", branches=waits(12, 0.5), on="leaf-1")
        assert mesh.wait_session(session["id"], on="node-1")["completed"] == 12
        assert where(mesh["node-1"], session["id"])["leaf-1"] >= 8
        mesh.kill("node-1")
        mesh["node-1"].start()
        mesh.wait(
            "it is back",
            lambda: (leaf.status() or {}).get("ready") and (leaf.status() or {}).get("parents_found", 0) > 1,
        )
        session = mesh.submit(thought="y", branches=waits(12, 0.5), on="leaf-1")
        assert mesh.wait_session(session["id"], on="leaf-1")["completed"] == 12
