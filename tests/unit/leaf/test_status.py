"""What a Leaf says of itself, in the words of other nodes."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from mesh.keeper import TrustStatus
from mesh.trust import Admission, Dates
from node.config import Config
from node.leaf.app import Leaf
from node.leaf.status import Status
from node.service.times import iso, now_ms
from node.settings import NodeSettings
from node.uplinks.messages import Told
from storage.ids import NodeId

DAY_S = 86_400.0
PARENT = NodeId("b" * 26)


class Links:
    """To one parent."""

    def __init__(self, now_s: float) -> None:
        self.trust = TrustStatus(("0a1b2c3d", "4e5f6a7b"), "next", None, now_s + 80 * DAY_S, now_s + 20 * DAY_S, ("!",))
        self.admission = Admission("0a1b2c3d", Dates(now_s, now_s + 70 * DAY_S))

    def trust_status(self) -> TrustStatus:
        return self.trust

    def admission_of(self, peer: NodeId) -> Admission:
        return self.admission

    def address_of(self, peer: NodeId) -> str:
        return "10.0.0.2:7781"

    def rtt_s(self, peer: NodeId) -> float:
        return 0.001

    def link_counters(self, peer: NodeId) -> dict[str, int]:
        return {}

    def counters(self) -> dict[str, int]:
        return {}


def document(links: Links, told: Told | None) -> dict[str, Any]:
    uplink = SimpleNamespace(
        told=told,
        trouble="no parent is in sight",
        is_registered=True,
        refusal="",
        since=0.0,
        changes=1,
        alternatives=(),
    )
    leaf = SimpleNamespace(
        uplink=uplink,
        links=links,
        config=Config(node=NodeSettings(data_dir="/data")),
        node_id="a" * 26,
        instance_id="1" * 16,
        tier_why="configured",
        outbox=SimpleNamespace(counts={"dropped": 0}),
        registry=SimpleNamespace(problems=()),
        executor=SimpleNamespace(statistics=dict),
    )
    status, found = Status(cast(Leaf, leaf)).document()
    assert status == 200
    return found


def test_secrets_and_certificates_are_told_as_by_other_nodes() -> None:
    now_s = now_ms() / 1000
    links = Links(now_s)
    found = document(links, Told(parent=PARENT, name="beta", tier="core"))
    assert found["secret"] == {
        "presents": "0a1b2c3d", "accepts": ["0a1b2c3d", "4e5f6a7b"], "second_is": "next", "second_since": None
    }  # fmt: skip
    assert found["certificate"] == {
        "ends_at": iso(int(links.trust.certificate_ends_at * 1000)),
        "renews_at": iso(int(links.trust.certificate_renews_at * 1000)),
    }
    assert found["parent"]["admitted_by"] == "0a1b2c3d"
    assert found["parent"]["certificate_ends_at"] == iso(int(links.admission.dates.ends_at * 1000))
    assert found["storage"] == {"data_dir": "/data"}
    assert found["warnings"] == ["!"]


def test_certificates_that_end_soon_are_warned_about() -> None:
    now_s = now_ms() / 1000
    links = Links(now_s)
    links.trust = replace(links.trust, certificate_ends_at=now_s + 3.5 * DAY_S, warnings=())
    links.admission = Admission("0a1b2c3d", Dates(now_s, now_s + 5.5 * DAY_S))
    own, of_parent = document(links, Told(parent=PARENT, name="beta", tier="core"))["warnings"]
    assert own.startswith("this node's certificate ends in 3 days")
    assert of_parent.startswith("the certificate of beta on its link to this node ends in 5 days")
    alone = document(links, None)
    assert alone["parent"] is None
    assert [text[:22] for text in alone["warnings"]] == ["not ready: no parent i", "this node's certificat"]
