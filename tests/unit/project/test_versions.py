"""What is stored or sent may gain fields: every struct can be read with one more at its end."""

import pkgutil
from importlib import import_module

import msgspec
import pytest

import consensus
import mesh
import storage
from consensus.messages import Vote, decode_frame, encode_frame
from consensus.state.rows import Lease
from mesh.handshake import Hello, encode, read_hello
from storage.ids import InstanceId, NodeId, SessionId

LEASE = Lease(
    session_id=SessionId("s"), branch_index=0, ritual="echo", attempt=1, node_id=NodeId("a"),
    instance_id=InstanceId("a1"), deadline_ms=1,
)  # fmt: skip
HELLO = Hello(1, 1, "home", NodeId("a"), InstanceId("a1"), "ann", "core")


def structs() -> list[type[msgspec.Struct]]:
    """Of the packages whose values cross a wire or a disk."""
    for package in (storage, mesh, consensus):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    found: list[type[msgspec.Struct]] = []
    waiting = [msgspec.Struct]
    while waiting:
        kind = waiting.pop()
        waiting.extend(kind.__subclasses__())
        if kind.__module__.partition(".")[0] in ("storage", "mesh", "consensus"):
            found.append(kind)
    return found


@pytest.mark.parametrize("kind", structs(), ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
def test_no_struct_refuses_what_a_later_version_appends(kind: type[msgspec.Struct]) -> None:
    assert not kind.__struct_config__.forbid_unknown_fields


def test_appended_fields_are_passed_over() -> None:
    """One of each form: a map, an array, an array with a tag."""
    hello = msgspec.msgpack.decode(encode(HELLO))
    assert read_hello(msgspec.msgpack.encode({**hello, "appended": [1]})) == HELLO
    entry = msgspec.msgpack.decode(msgspec.msgpack.encode(LEASE))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([*entry, "appended"]), type=Lease) == LEASE
    vote = msgspec.msgpack.decode(encode_frame([Vote(3)]))[0]
    assert decode_frame(msgspec.msgpack.encode([[*vote, "appended"]])) == [Vote(3)]
