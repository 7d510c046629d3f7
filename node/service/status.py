"""What a node says of itself: the status document, and the verdicts of health and readiness.

Health is about this process (a supervisor restarts it), readiness about progress (a balancer goes elsewhere): a node
that looks fine and has applied nothing for a while is not ready.
"""

import platform
import time
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Final

import msgspec

from consensus.state import queries
from consensus.state import versions as command_versions
from consensus.state.rows import Member
from mesh.handshake import PROTOCOL_MAX
from node import __version__
from node.service import backlog, liveness, trust, voting
from node.service.errors import ServiceError
from node.service.ports import GroupStatus
from node.service.readings import Level
from node.service.service import NodeService
from node.service.times import iso
from storage.ids import NodeId
from storage.meta import FORMAT as STORAGE_FORMAT
from storage.space import Space

PROGRESS_S_MAX: Final = 15.0
"""A command must have been applied within this; the leader commits a canary every few seconds if nothing else does."""

DISK_FREE_BYTES_WARN: Final = 1 << 30
LEFT: Final = "this node has left the mesh: stop it; starting it again brings it back"
_FORMATS: Final = {
    "link_protocol": PROTOCOL_MAX,
    "storage_format": STORAGE_FORMAT,
    "command_version": command_versions.COMMAND_VERSION,
}
LIBRARIES: Final = ("pysyncobj", "aiohttp", "msgspec", "lmdb", "zeroconf", "cryptography")


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool
    detail: str


def health(service: NodeService) -> list[Check]:
    failure = service.replica_failure
    return [Check("loop", True, "answers"), Check("replica", failure is None, failure or "works")]


def readiness(service: NodeService) -> list[Check]:
    checks = health(service)
    status = service.status_or_none
    if status is None or service.progress is None:
        return [*checks, Check("founded", False, service.mesh.founding_status)]
    withdrawn = f"this replica has withdrawn itself: {status.quarantine_reason}"
    checks.append(
        Check("agreement", not status.is_quarantined, withdrawn if status.is_quarantined else "as the others")
    )
    age_s = service.progress.age_s()
    if age_s is None:
        detail = "nothing has been applied since the start"
    else:
        detail = f"a command was applied {age_s:.1f} s ago, allowed are {PROGRESS_S_MAX:.0f} s"
    checks.append(Check("progress", age_s is not None and age_s <= PROGRESS_S_MAX, detail))
    if status.is_removed:
        checks.append(Check("removed", False, voting.REMOVED))
    own = next((row for row in _members(service) if row.node_id == service.facts.node_id), None)
    is_member = own is not None and own.instance_id == service.facts.instance_id
    checks.append(Check("membership", is_member, "registered" if is_member else "this start is not registered yet"))
    if own is not None and is_member and own.status == "left":
        checks.append(Check("left", False, LEFT))
    checks.append(Check("disk", service.disk.space is not Space.FULL, f"space is {service.disk.space.value}"))
    if service.hub.is_closed:
        checks.append(Check("staying", False, "this node is stopping"))
    return checks


def document(service: NodeService, level: Level = "stale") -> dict[str, Any]:
    """Everything an operator asks first. Works before the mesh is founded and while it has no leader. `level`: how
    fresh this node's replica was made for it."""
    facts, status = service.facts, service.status_or_none
    members = _members(service)
    peers = [_plain(peer) for peer in service.mesh.peers()]
    names = service.names()
    leader = None if status is None else status.leader
    checks = readiness(service)
    return {
        "name": facts.name,
        "node_id": facts.node_id,
        "instance_id": facts.instance_id,
        "tier": facts.tier,
        "tier_why": facts.tier_why,
        "mesh": facts.mesh_name,
        "mesh_id": service.mesh.mesh_id,
        "founding": service.mesh.founding_status,
        "ready": all(check.ok for check in checks),
        "leader": None if leader is None else {"node_id": leader, "name": names.get(leader)},
        **_consensus(service, status, names),
        "as_of_index": None if status is None else status.applied_index,
        "level": level,
        "age_ms": 0 if level == "linearizable" else service.age_ms(),
        "membership": voting.document(
            status, facts.node_id, names, () if service.steward is None else service.steward.actions
        ),
        "liveness": liveness.document(service, members, names, is_leading=leader == facts.node_id),
        **trust.document(service.mesh.trust_status()),
        "peers": [_told(peer, "certificate_ends_at_ms") for peer in peers],
        "members": [{"node_id": row.node_id, "name": row.name, "status": row.status} for row in members],
        "discovery": [_told(_plain(entry), "at_ms") for entry in service.mesh.diary()],
        "backlog": _backlog(service),
        "refusals": {"mesh": dict(service.mesh.counters()), "consensus": dict(status.dropped) if status else {}},
        "slots": None if service.executor is None else _plain(service.executor.statistics()),
        "storage": {
            **_plain(service.store.statistics()), "space": service.disk.space.value, "data_dir": facts.data_dir
        },
        "watchers": {"open": service.hub.watcher_count, "waiting": service.hub.waiter_count,
                     "closed_too_slow": service.hub.slow_count},
        "versions": {**versions(), "mesh_command_version": command_versions.common(members)},
        "http_address": facts.http_address,
        "uptime_s": round(time.monotonic() - service.started_at, 3),
        "warnings": warnings(service, checks, peers, members, leader, names),
    }  # fmt: skip


def warnings(
    service: NodeService,
    checks: list[Check],
    peers: list[dict[str, Any]],
    members: list[Member],
    leader: NodeId | None,
    names: dict[NodeId, str],
) -> list[str]:
    """What an operator should know, in words; empty is good."""
    found = [f"not ready: {check.detail}" for check in checks if not check.ok]
    if service.is_founded and leader is None:
        age_ms = service.age_ms()
        age = "of unknown age" if age_ms is None else f"{age_ms / 1000:.1f} s old"
        found.append(f"no leader is known: writes wait until most Core nodes reach each other; reads here are {age}")
    for peer in peers:
        if peer.get("state") == "down":
            found.append(f"no link to {peer.get('name') or peer.get('node_id')}")
    found.extend(f"member {row.name} is dead: its work goes on elsewhere" for row in members if row.status == "dead")
    found.extend(liveness.warnings(service, members, names, is_leading=leader == service.facts.node_id))
    linked = [peer for peer in service.mesh.peers() if peer.state == "up"]
    ends = [(peer.name or peer.node_id, peer.certificate_ends_at_ms) for peer in linked]
    found.extend(trust.warnings(service.mesh.trust_status(), ends, service.now_ms()))
    if service.mesh.counters().get("superseded_mesh"):
        found.append(
            "a mesh was given up, restored or recovered, and a node of it is still there: its data directory must be "
            "moved away; the log (superseded_mesh) says which node that is"
        )
    statistics = service.store.statistics()
    if statistics.disk_free_bytes < DISK_FREE_BYTES_WARN:
        found.append(f"only {statistics.disk_free_bytes >> 20} MiB are free on the disk of {service.facts.data_dir}")
    found.extend(f"ritual {row['name']} is not offered: {row['reason']}" for row in service.ritual_problems())
    return found


@cache
def versions() -> dict[str, Any]:
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            libraries[name] = "unknown"
    return {"software": __version__, "python": platform.python_version(), "libraries": libraries, **_FORMATS}


def _consensus(service: NodeService, status: GroupStatus | None, names: dict[NodeId, str]) -> dict[str, Any]:
    """The same keys before and after founding."""
    if status is None:
        nothing = ("role", "term", "commit_index", "applied_index", "first_index", "last_index", "progress_age_s")
        return {**dict.fromkeys(nothing), "voters": [], **_repair(service, status)}
    return {
        "role": status.role.name.lower(),
        "term": status.term,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "first_index": status.first_index,
        "last_index": status.last_index,
        "progress_age_s": None if service.progress is None else service.progress.age_s(),
        "voters": [
            {
                "node_id": voter,
                "name": names.get(voter),
                "match_index": status.match_index.get(voter),
                "withdrawn": voter in status.withdrawn,
            }
            for voter in status.voters
        ],
        **_repair(service, status),
    }


def _repair(service: NodeService, status: GroupStatus | None) -> dict[str, Any]:
    """Why this replica has withdrawn itself, the snapshot that it needs, and when its rows were last checked."""
    snapshots = service.snapshots
    progress = None if snapshots is None else snapshots.progress
    checked_at = None if snapshots is None else snapshots.checked_at
    return {
        "quarantine": status.quarantine_reason if status is not None and status.is_quarantined else None,
        "snapshot": None if progress is None or progress.state == "idle" else _plain(progress),
        "rows_checked_s_ago": None if checked_at is None else round(time.monotonic() - checked_at, 1),
    }


def _backlog(service: NodeService) -> dict[str, Any] | None:
    try:
        return service.read(lambda txn: backlog.document(txn, service.waits, service.now_ms()))
    except ServiceError:
        return None


def _members(service: NodeService) -> list[Member]:
    try:
        return service.read(queries.members)
    except ServiceError:
        return []  # the rest of the document is what somebody needs who looks into a broken store


def _told(entry: dict[str, Any], key: str) -> dict[str, Any]:
    """With the time under `key` as clients see times."""
    return {
        name.removesuffix("_ms") if name == key else name: iso(value) if name == key else value
        for name, value in entry.items()
    }


def _plain(value: Any) -> dict[str, Any]:
    """A struct, a named tuple or a dataclass of another package as plain JSON values."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    plain = msgspec.to_builtins(value, enc_hook=str, str_keys=True, builtin_types=())
    if isinstance(value, msgspec.Struct) and isinstance(plain, list):  # array-like on the wire
        plain = dict(zip(value.__struct_fields__, plain, strict=True))
    assert isinstance(plain, dict), f"{type(value).__name__} has no fields"
    return plain
