"""What nodes remember of a founding and tell each other about it. Pure; the rules are in `bootstrap.py`."""

import hashlib
from typing import Final, Literal

import msgspec

from mesh.limits import HANDSHAKE_FRAME_BYTES_MAX
from storage.ids import MeshId, NodeId

NUMBER_MAX: Final = 2**32 - 1
"""Of a proposal, and of a floor. Honest numbers count dead proposals: a handful."""

FLOOR_JUMP_MAX: Final = 2**16
"""How far apart founding numbers of honest nodes may be. Whoever is further ahead lies, or was lied to: followed once,
it would use up the numbers for good, for floors are durable."""

_VOTERS_MAX: Final = 7

FORMER_MAX: Final = 16
"""Former meshes remembered: their nodes come back within months, and nobody recovers that often."""


class FoundingRecord(msgspec.Struct, frozen=True):
    """What a node must not forget. `fresh` with a floor: it promised or refused something that is dead now."""

    state: Literal["fresh", "promised", "founded"]
    mesh_id: MeshId
    voters: tuple[NodeId, ...]
    proposer: NodeId
    at_ms: int
    number: int = 0
    floor: int = 0
    is_withdrawn: bool = False
    is_taken_over: bool = False
    former: tuple[MeshId, ...] = ()
    """Meshes that this one goes on for, the latest last: it was restored from a backup of theirs, or recovered after
    their majority was lost. Their nodes are told so when they come back."""


def succeed(own: NodeId, former: tuple[MeshId, ...], floor: int, wall_ms: int) -> FoundingRecord:
    """The founding of a mesh of one voter that goes on for others, by a person's decision."""
    number = min(floor + 1, NUMBER_MAX)
    mesh_id = make_mesh_id(own, number, wall_ms, (own,))
    return FoundingRecord(
        "founded", mesh_id, (own,), own, wall_ms, number=number, floor=number, former=former[-FORMER_MAX:]
    )


def make_mesh_id(own: NodeId, number: int, wall_ms: int, voters: tuple[NodeId, ...]) -> MeshId:
    """Unique without dice: `own` never uses a number twice, and the time covers a data directory that was removed."""
    text = f"{own}|{number}|{wall_ms}|{','.join(voters)}"
    return MeshId(hashlib.blake2b(text.encode(), digest_size=16, person=b"meshnode-founded").hexdigest())


def floor_of(record: FoundingRecord | None) -> int:
    """Numbers up to this one are refused; 0 for a node that took part in nothing yet."""
    return 0 if record is None else record.floor


class Announce(msgspec.Struct, frozen=True, tag="announce"):
    """Where the sender stands; sent when a link comes up and whenever it changes."""

    tier: str
    expect: int
    record: FoundingRecord | None


class Propose(msgspec.Struct, frozen=True, tag="propose"):
    proposal: FoundingRecord


class Promise(msgspec.Struct, frozen=True, tag="promise"):
    mesh_id: MeshId


class Never(msgspec.Struct, frozen=True, tag="never"):
    """The proposal is dead: a voter has not promised it and never will."""

    mesh_id: MeshId
    floor: int


class Withdraw(msgspec.Struct, frozen=True, tag="withdraw"):
    """From the proposer: it will not found this, and asks a member to declare it dead."""

    proposal: FoundingRecord


Message = Announce | Propose | Promise | Never | Withdraw
_DECODER = msgspec.msgpack.Decoder(Message)


def encode_message(message: Message) -> bytes:
    return msgspec.msgpack.encode(message)


def decode_message(body: bytes) -> Message | None:
    """Any bytes; None if they are not a founding message of sane size: what is founded must fit into a Hello."""
    if len(body) > HANDSHAKE_FRAME_BYTES_MAX // 2:
        return None
    try:
        message: Message = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    match message:
        case Announce(record=record):
            pass
        case Propose(proposal=record) | Withdraw(proposal=record):
            pass
        case Never(floor=floor):
            return message if 0 <= floor <= NUMBER_MAX else None
        case _:
            return message
    if record is None:
        return message
    is_sane = len(record.voters) <= _VOTERS_MAX and len(set(record.voters)) == len(record.voters)
    is_sane = (
        is_sane
        and len(record.former) <= FORMER_MAX
        and 0 <= record.number <= NUMBER_MAX
        and 0 <= record.floor <= NUMBER_MAX
    )
    return message if is_sane and (record.state == "fresh" or record.proposer in record.voters) else None
