"""What a node tells the leader of its links, so that a member is not judged by the leader's link alone."""

import msgspec

from storage import codec
from storage.errors import CodecError
from storage.ids import InstanceId, NodeId

TOPIC = "testimony"

TESTIMONY_BYTES_MAX = 64 * 1024
"""256 links of 80 bytes each, with room."""


class Testimony(msgspec.Struct, array_like=True, frozen=True):
    """All of it each time, told when it has changed. Who is in neither map: nothing is known of it, or not for sure."""

    is_doubting: bool = False
    """This node was unwell lately: that it lost somebody may be its own fault."""
    heard: dict[NodeId, InstanceId] = {}
    lost: dict[NodeId, InstanceId] = {}
    """Instances to which the link has ended, and is not made anew yet."""


def encode_testimony(testimony: Testimony) -> bytes:
    return codec.encode(testimony)


def decode_testimony(payload: bytes) -> Testimony | None:
    """Any bytes; None if they are no testimony."""
    try:
        return codec.decode(payload, Testimony, TESTIMONY_BYTES_MAX)
    except CodecError:
        return None
