"""How fresh reads are, over three nodes."""

from typing import Any

import pytest

from node.testing import MeshUnderTest
from node.testing.harness import NodeUnderTest

pytestmark = pytest.mark.meshnode(mode="both")

ECHO = [{"ritual": "echo", "task": "hello"}]


def listing(node: NodeUnderTest, query: str) -> Any:
    return node.call("GET", f"/v1/sessions?{query}")


def test_what_one_node_has_answered_another_reads(mesh: MeshUnderTest) -> None:
    mesh.start()
    for round_ in range(3):
        for writer in mesh.nodes():
            written = mesh.submit(thought=f"round {round_}", branches=ECHO, on=writer)
            for reader in mesh.nodes():
                for level in ("leader", "linearizable"):
                    answer = listing(mesh[reader], f"limit=1&level={level}").expect(200)
                    assert answer["as_of_index"] >= written["submit_index"]
                    assert answer["sessions"][0]["id"] == written["id"]


def test_a_node_that_hears_nobody_knows_how_old_it_is(mesh: MeshUnderTest) -> None:
    leader = mesh.start()
    follower = mesh[mesh.followers()[0]]
    mesh.submit(thought="before", branches=ECHO, on=leader)
    for name in mesh.nodes():
        if name != follower.name:
            mesh.pause(name)
    refused = mesh.wait(
        "the node refuses to answer with what may be a second old",
        lambda: (answer := listing(follower, "max_age_ms=1000")).status != 200 and answer,
    )
    assert (refused.status, refused.body["code"]) == (503, "too_stale")
    assert refused.body["age_ms"] > 1000
    stale = listing(follower, "level=stale").expect(200)
    assert stale["age_ms"] >= refused.body["age_ms"]
    assert listing(follower, "level=linearizable").body["code"] in ("no_leader", "timeout")
    for name in mesh.nodes():
        mesh.resume(name)
    mesh.wait("it is fresh again", lambda: listing(follower, "max_age_ms=1000").status == 200)
    listing(follower, "level=linearizable").expect(200)


def test_a_leader_that_was_stopped_keeps_no_reader_waiting(mesh: MeshUnderTest) -> None:
    """Its process is stopped, its links are up: whoever asked it asks the next one."""
    leader = mesh.start()
    follower = mesh[mesh.followers()[0]]
    written = mesh.submit(thought="before", branches=ECHO, on=leader)
    mesh.pause(leader)
    found = mesh.wait(
        "a linearizable read is answered without the old leader",
        lambda: (answer := listing(follower, "level=linearizable")).status == 200 and answer.body,
    )
    assert found["as_of_index"] >= written["submit_index"]
    mesh.resume(leader)
    mesh.wait("the old leader reads too", lambda: listing(mesh[leader], "level=linearizable").status == 200)
