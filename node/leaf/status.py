"""What a Leaf says of itself. Health is about this process; readiness, about work: it is ready when it hangs on a
parent and is registered."""

import time
from typing import TYPE_CHECKING, Any

import msgspec

from node import __version__
from node.config import join_host_port
from node.service import trust
from node.service.times import iso, now_ms

if TYPE_CHECKING:
    from node.leaf.app import Leaf


class Status:
    """Answers for the HTTP port: status and document."""

    def __init__(self, leaf: "Leaf") -> None:
        self._leaf = leaf
        self._started_at = time.monotonic()

    def health(self) -> tuple[int, dict[str, Any]]:
        return 200, {"ok": True, "checks": [{"name": "loop", "ok": True, "detail": "answers"}]}

    def readiness(self) -> tuple[int, dict[str, Any]]:
        uplink = self._leaf.uplink
        has_parent = uplink.told is not None
        checks = [
            {"name": "parent", "ok": has_parent, "detail": uplink.told.name if uplink.told else uplink.trouble},
            {
                "name": "membership",
                "ok": uplink.is_registered,
                "detail": "registered"
                if uplink.is_registered
                else uplink.refusal or "this start is not registered yet",
            },
        ]
        is_ok = all(check["ok"] for check in checks)
        return 200 if is_ok else 503, {"ok": is_ok, "checks": checks}

    def document(self) -> tuple[int, dict[str, Any]]:
        leaf, uplink, links = self._leaf, self._leaf.uplink, self._leaf.links
        config, told, own = leaf.config, uplink.told, links.trust_status()
        _, ready = self.readiness()
        parent, certificate_ends_at_ms = None, None
        if told is not None:
            rtt_s, admission = links.rtt_s(told.parent), links.admission_of(told.parent)
            certificate_ends_at_ms = None if admission is None else int(admission.dates.ends_at * 1000)
            parent = {
                "node_id": told.parent,
                "name": told.name,
                "tier": told.tier,
                "address": links.address_of(told.parent),
                "rtt_ms": None if rtt_s is None else round(rtt_s * 1000, 3),
                "since_s": round(time.monotonic() - uplink.since, 3),
                "admitted_by": "" if admission is None else admission.secret,
                "certificate_ends_at": iso(certificate_ends_at_ms),
                "counters": links.link_counters(told.parent),
            }
        ends = [] if told is None else [(told.name, certificate_ends_at_ms)]
        leader = None if told is None or told.leader is None else told
        outbox = leaf.outbox.counts
        return 200, {
            "name": config.node.name,
            "node_id": leaf.node_id,
            "instance_id": leaf.instance_id,
            "tier": "leaf",
            "tier_why": leaf.tier_why,
            "mesh": config.mesh.name,
            "ready": ready["ok"],
            "parent": parent,
            "parents_found": uplink.changes,
            "looking_for_parent": None if told is not None else uplink.trouble,
            "alternatives": [
                {"node_id": one.node_id, "name": one.name, "tier": one.tier, "addresses": one.addresses}
                for one in uplink.alternatives
            ],
            "leader": None if leader is None else {"node_id": leader.leader, "name": leader.leader_name},
            "results": outbox,
            "slots": msgspec.to_builtins(leaf.executor.statistics(), enc_hook=str),
            "refusals": {"mesh": links.counters()},
            **trust.document(own),
            "versions": {"software": __version__},
            "http_address": join_host_port(config.http.bind, config.http.port),
            "storage": {"data_dir": str(config.data_dir)},
            "uptime_s": round(time.monotonic() - self._started_at, 3),
            "warnings": self._warnings(ready, outbox, trust.warnings(own, ends, now_ms())),
        }

    def _warnings(self, ready: dict[str, Any], outbox: dict[str, int], of_trust: list[str]) -> list[str]:
        found = [f"not ready: {check['detail']}" for check in ready["checks"] if not check["ok"]]
        if outbox["dropped"]:
            found.append(f"{outbox['dropped']} results were dropped, because there was no room to keep them")
        found.extend(of_trust)
        found.extend(f"ritual {row.name} is not offered: {row.reason}" for row in self._leaf.registry.problems)
        return found
