"""A Leaf: what it weighs when nothing happens, and how soon it works again when its parent is killed."""

import http.client
import time
from pathlib import Path

from node.testing import Daemon, LocalMesh
from node.testing.files import free_ports, node_document, to_toml
from scripts.bench.daemons import children, cpu_s, pid_of, rss_mb
from scripts.bench.report import Figure

WORKERS = 2
"""One for async rituals, one for CPU rituals: they start some seconds after the Leaf is registered."""


def measure(folder: Path, runs: int, seconds: float = 20.0) -> list[Figure]:
    ram = Figure("idle RSS of a Leaf", "MB", "45")
    worker_ram = Figure("idle RSS of its worker processes", "MB", "")
    cpu = Figure("idle CPU of a Leaf, workers included", "% of a core", "0.5")
    orphaned = Figure("parent killed: its Leaf is registered under another", "s", "2")
    with LocalMesh(folder / "leaf", zeroconf=False, with_seeds=True) as mesh:
        leaf = leaf_of(mesh)
        mesh.start()
        wait_ready(mesh, leaf)
        mesh.wait("its workers run", lambda: len((leaf.status() or {})["slots"]["workers"]) == WORKERS)
        for _ in range(runs):
            pids = [pid_of(leaf), *children(pid_of(leaf))]
            time.sleep(2.0)  # starting is over
            before, started = sum(map(cpu_s, pids)), time.perf_counter()
            time.sleep(seconds)
            cpu.values.append((sum(map(cpu_s, pids)) - before) / (time.perf_counter() - started) * 100)
            ram.values.append(rss_mb(pids[0]))
            worker_ram.values.extend(rss_mb(pid) for pid in pids[1:])
        for _ in range(runs):
            parent = wait_ready(mesh, leaf)
            mesh.kill(parent)
            started = time.perf_counter()
            wait_ready(mesh, leaf, other_than=parent)
            orphaned.values.append(time.perf_counter() - started)
            mesh.start()
    return [ram, worker_ram, cpu, orphaned]


def leaf_of(mesh: LocalMesh) -> Daemon:
    """A Leaf that knows all nodes of the mesh; not started."""
    directory = mesh.directory / "leaf-1"
    directory.mkdir()
    leaf = Daemon(name="leaf-1", directory=directory, http_host="127.0.0.1", http_port=free_ports(1)[0], mesh_port=0)
    seeds = [f"127.0.0.1:{daemon.mesh_port}" for daemon in mesh.daemons.values()]
    document = node_document(
        name="leaf-1", tier="leaf", directory=directory, http=(leaf.http_host, leaf.http_port), settings={},
        mesh={"name": mesh.name, "secret_file": str(mesh.secret_file), "zeroconf": False, "seeds": seeds},
    )  # fmt: skip
    leaf.config_path.write_text(to_toml(document))
    mesh.daemons[leaf.name] = leaf
    return leaf


def wait_ready(mesh: LocalMesh, leaf: Daemon, other_than: str = "") -> str:
    """Until it works under a parent; its name."""

    def parent() -> str | None:
        try:
            status = leaf.call("GET", "/status", timeout_s=5).expect(200)
        except (OSError, http.client.HTTPException):
            return None
        name = str((status["parent"] or {}).get("name"))
        return name if status["ready"] and name != other_than else None

    return mesh.wait("the leaf works under a parent", parent)
