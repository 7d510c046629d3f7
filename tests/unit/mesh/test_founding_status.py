"""The status line of a founding says what it waits for."""

from storage.ids import NodeId
from tests.unit.mesh.founding_model import Model


def test_status_says_alone_and_how_many_are_missing() -> None:
    model = Model(2, 3)
    one = model.nodes[NodeId("n0")].bootstrap
    assert one is not None
    assert one.status() == "alone, waiting for 2 more"
    model.settle()
    assert one.status() == "2 Core nodes here, waiting for 1 more"


def test_different_expectations_are_named() -> None:
    model = Model(3, 3)
    odd = model.nodes[NodeId("n2")]
    odd.expect = 5
    model.start(odd)
    model.settle()
    one = model.nodes[NodeId("n0")].bootstrap
    assert one is not None
    assert "bootstrap_expect = 3, others have 5" in one.status()
    assert not model.records
