"""Leaf daemons beside a `LocalMesh`."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from node.testing import Daemon, LocalMesh
from node.testing.files import free_ports, node_document, to_toml


def add_leaf(
    mesh: LocalMesh,
    name: str = "leaf-1",
    *,
    seeds: list[str] | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    zeroconf: bool = False,
) -> Daemon:
    """Not yet started. `seeds`: names of nodes; all of them if it is not given."""
    return add_node(mesh, name, "leaf", seeds=seeds, settings=settings, zeroconf=zeroconf)


def add_node(
    mesh: LocalMesh,
    name: str,
    tier: str,
    *,
    seeds: list[str] | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    zeroconf: bool = False,
) -> Daemon:
    http_port, mesh_port = free_ports(2)
    daemon = Daemon(
        name=name,
        directory=mesh.directory / name,
        http_host="127.0.0.1",
        http_port=http_port,
        mesh_port=0 if tier == "leaf" else mesh_port,
    )
    daemon.directory.mkdir(exist_ok=True)
    nodes = [mesh[seed] for seed in (list(mesh.daemons) if seeds is None else seeds)]
    document = node_document(
        name=name,
        tier=tier,
        directory=daemon.directory,
        mesh={
            "name": mesh.name,
            "secret_file": str(mesh.secret_file),
            "bind": "127.0.0.1",
            "port": daemon.mesh_port or 7781,
            "zeroconf": zeroconf,
            "seeds": [f"127.0.0.1:{node.mesh_port}" for node in nodes if node.mesh_port],
        },
        http=(daemon.http_host, daemon.http_port),
        settings=settings or {},
    )
    daemon.config_path.write_text(to_toml(document))
    mesh.daemons[name] = daemon
    return daemon


def parent_of(leaf: Daemon) -> str | None:
    return ((leaf.status() or {}).get("parent") or {}).get("name")


def wait_parent(mesh: LocalMesh, leaf: Daemon, other_than: str | None = None) -> str:
    """Until it is ready under a parent; its name."""

    def found() -> str | None:
        status = leaf.status() or {}
        name: str | None = (status.get("parent") or {}).get("name")
        return name if status.get("ready") and name != other_than else None

    return mesh.wait(f"{leaf.name} hangs on a parent", found)


def only_leaves() -> dict[str, dict[str, object]]:
    """Settings of nodes that leave all waiting to Leaf nodes."""
    return {"execution": {"async_slots": 1, "slots": 1}}


def waits(count: int, seconds: float) -> list[dict[str, object]]:
    return [{"ritual": "wait", "task": f"wait {i}", "parameters": {"seconds": seconds}} for i in range(count)]


def branches(node: Daemon, session_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = node.call("GET", f"/v1/sessions/{session_id}/branches?limit=1000").expect(200)[
        "branches"
    ]
    return found


def where(node: Daemon, session_id: str) -> Counter[str]:
    """Names of the nodes that completed the branches of a session."""
    names = {row["node_id"]: row["name"] for row in node.call("GET", "/v1/members").expect(200)["members"]}
    return Counter(names.get(row["node_id"], "") for row in branches(node, session_id) if row["status"] == "completed")


def attempts(node: Daemon, branch: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = node.call("GET", f"/v1/branches/{branch['id']}").expect(200)["attempts"]
    return found
