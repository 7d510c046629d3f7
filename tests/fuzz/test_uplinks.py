"""What a Leaf and its parent read from each other, and a Leaf from its clients: any bytes, and nothing but the errors
that are named."""

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity import is_proven
from mesh.parents import Alternative
from node.executor.work import AttemptKey
from node.leaf.request import Malformed, Passage, read_request
from node.uplinks import messages
from node.uplinks.messages import (
    Assigned,
    Attach,
    Attached,
    HttpOpen,
    HttpPart,
    Register,
    Registered,
    SignedOutcomes,
    Told,
    Verdict,
)
from storage.errors import CodecError
from storage.ids import NodeId

KINDS: list[Any] = [
    Attach, Attached, Told, Register, Registered, list[Assigned], SignedOutcomes, list[Verdict], HttpOpen,
    HttpPart, Alternative, list[AttemptKey], list[str], dict[str, int],
]  # fmt: skip

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=30,
)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.binary(max_size=200) | plain.map(msgspec.msgpack.encode))
def test_messages(kind: Any, data: bytes) -> None:
    with contextlib.suppress(CodecError):
        messages.decode(data, kind)
    assert messages.decoded(data, kind) is None or messages.decode(data, kind) is not None
    messages.outcome_of(data)


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_proofs(proof: bytes, content: bytes) -> None:
    assert not is_proven(NodeId("a" * 26), proof, content)


heads = st.lists(
    st.sampled_from([b"GET / HTTP/1.1", b"\r\n", b"Host: a", b":", b" ", b"Content-Length: ", b"7", b"\x00", b"\xff"])
)


@given(st.binary(max_size=200) | heads.map(b"".join))
def test_requests(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        request = read_request(data)
        assert request.passed_on(b"").count(b"\r\n\r\n") == 1


@given(st.lists(st.binary(max_size=60) | heads.map(b"".join) | st.just(b"HTTP/1.1 200 OK\r\n"), max_size=6))
def test_answers(parts: list[bytes]) -> None:
    passage = Passage("GET")
    taken = b""
    with contextlib.suppress(Malformed):
        for part in parts:
            taken += passage.take(part)
        assert b"".join(parts).startswith(taken.replace(b"Connection: close\r\n", b""))
