"""What replicas say to each other: MessagePack arrays, tagged with a number, decoded with every field's type and range
checked. A frame is a list of messages. Every message carries the term its sender was in, because the engine's own
acknowledgements carry none (section 4, row 4).

Tags are the wire format: never reuse one. A field may only be appended, with a default.
"""

from collections.abc import Sequence
from typing import Annotated, TypeAlias, get_args

import msgspec

from consensus.limits import (
    BATCH_ENTRIES_MAX,
    COMMAND_BYTES_MAX,
    FRAME_BYTES_MAX,
    FRAME_MESSAGES_MAX,
    INDEX_MAX,
    TERM_MAX,
)
from consensus.membership import decode_configuration
from storage.ids import NodeId

Term: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=TERM_MAX)]
Index: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=INDEX_MAX)]
Entry: TypeAlias = tuple[bytes, int, int]
"""Raw command, index, term: the engine's order. The first byte of the raw command is its kind."""

COMMAND = b"\x00"
NO_OP = b"\x01"
CONFIGURATION = b"\x10"
"""The kinds of entry; the last one is ours. The engine knows two more, both pickles; they are never proposed and never
accepted."""


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""

    sender_term: Term


class AppendEntries(Message, frozen=True, tag=1):
    """From the leader. Empty: a heartbeat."""

    commit_index: Term
    prev_index: Index
    prev_term: Term
    entries: Annotated[list[Entry], msgspec.Meta(max_length=BATCH_ENTRIES_MAX)]
    log_start: Term = 0
    """The leader can send what comes after this index; who needs more needs a snapshot."""


class NextIndex(Message, frozen=True, tag=2):
    """To the leader: what I want next. `is_success`: I hold everything before it, durably. `is_reset`: go back."""

    next_index: Index
    is_reset: bool
    is_success: bool
    is_withdrawn: bool = False
    """I store the log and vote, but my tables are not to be trusted: give me no work."""


class RequestVote(Message, frozen=True, tag=3):
    last_index: Index
    last_term: Term


class Vote(Message, frozen=True, tag=4):
    """Granted to whom it is sent, in the term it carries."""


class RequestPreVote(Message, frozen=True, tag=5):
    """Would you vote for me in `term`? Asking changes nothing."""

    term: Term
    last_index: Index
    last_term: Term


class PreVote(Message, frozen=True, tag=6):
    """I would, in `term`."""

    term: Term


class TimeoutNow(Message, frozen=True, tag=7):
    """From the leader to its chosen successor: start an election at once."""


class Commit(Message, frozen=True, tag=8):
    """From the leader, when there is nothing to append: everything up to the entry with this index *and term* is
    committed. The term makes it say nothing about a log that has another entry there."""

    index: Index
    index_term: Term


class HigherTerm(Message, frozen=True, tag=9):
    """Says only that the sender's term is higher than that of a message it got."""


class Checkpoint(Message, frozen=True, tag=10):
    """Digest of the sender's tables right after it applied `index`."""

    index: Index
    digest: Annotated[bytes, msgspec.Meta(min_length=1, max_length=64)]


class ReadProbe(Message, frozen=True, tag=11):
    """From the leader: do I still lead? Asking changes nothing."""

    number: Index


class ReadProof(Message, frozen=True, tag=12):
    """To the leader: I was in your term when the probe of this number arrived."""

    number: Index


class Removed(Message, frozen=True, tag=20):
    """To a node that asks for votes, from one that knows for sure that it was removed."""


AnyMessage: TypeAlias = (
    AppendEntries
    | NextIndex
    | RequestVote
    | Vote
    | RequestPreVote
    | PreVote
    | TimeoutNow
    | Commit
    | HigherTerm
    | Checkpoint
    | ReadProbe
    | ReadProof
    | Removed
)

EARLY = (AppendEntries, Commit, ReadProbe)
"""What a leader may say while it still writes: it says nothing about its own disk but that its term is on it."""

ANSWERS = (NextIndex, Vote, HigherTerm, PreVote, Checkpoint, ReadProof)
"""Messages to whose sender there is nothing to say if they are of an older term."""

_encoder = msgspec.msgpack.Encoder()
_TAG_MAX = max(int(kind.__struct_config__.tag) for kind in get_args(AnyMessage))
_message_decoder = msgspec.msgpack.Decoder(AnyMessage)
_fields_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])
_part_decoder = msgspec.msgpack.Decoder(Annotated[list[msgspec.Raw], msgspec.Meta(max_length=FRAME_MESSAGES_MAX)])
_decoder = msgspec.msgpack.Decoder(Annotated[list[AnyMessage], msgspec.Meta(max_length=FRAME_MESSAGES_MAX)])


def encode_frame(messages: Sequence[AnyMessage]) -> bytes:
    return _encoder.encode(messages)


def pack_frames(outbox: list[tuple[NodeId, AnyMessage]], bytes_max: int) -> list[tuple[NodeId, bytes]]:
    """A frame a peer, in order; a new one where entries would make it longer than `bytes_max`. What two peers are told
    alike is encoded once."""
    lists: list[tuple[NodeId, list[AnyMessage]]] = []
    waiting: dict[NodeId, tuple[list[AnyMessage], int]] = {}
    for peer, message in outbox:
        size = sum([len(entry[0]) for entry in message.entries]) if type(message) is AppendEntries else 0
        queued, total = waiting.get(peer, (None, 0))
        if queued is None or total + size > bytes_max or len(queued) >= 512:
            queued, total = [], 0
            lists.append((peer, queued))
        queued.append(message)
        waiting[peer] = (queued, total + size)
    encoded: dict[tuple[int, ...], bytes] = {}
    frames: list[tuple[NodeId, bytes]] = []
    for peer, messages in lists:
        key = tuple([id(message) for message in messages])
        frame = encoded.get(key)
        if frame is None:
            frame = encoded[key] = encode_frame(messages)
        frames.append((peer, frame))
    return frames


def decode_frame(frame: bytes) -> list[AnyMessage] | None:
    """None if these bytes are not a frame: too long, not MessagePack, a wrong type or range. Messages with a tag higher
    than all we know are left out: a newer version says more, and Raft bears the loss of any message."""
    if len(frame) > FRAME_BYTES_MAX:
        return None
    try:
        messages: list[AnyMessage] = _decoder.decode(frame)
    except (msgspec.DecodeError, RecursionError):
        return _decode_known(frame)
    return messages


def _decode_known(frame: bytes) -> list[AnyMessage] | None:
    try:
        parts = _part_decoder.decode(frame)
        return [_message_decoder.decode(part) for part in parts if _tag_of(part) <= _TAG_MAX]
    except (msgspec.DecodeError, RecursionError, IndexError):
        return None


def _tag_of(message: msgspec.Raw) -> int:
    return msgspec.msgpack.decode(_fields_decoder.decode(message)[0], type=int)


def are_entries_wellformed(message: AppendEntries) -> bool:
    """Indexes follow `prev_index` without a gap, terms never fall and never exceed the leader's, and every command is
    of a kind that holds no pickle and within its cap."""
    index, term = message.prev_index, message.prev_term
    if term > message.sender_term:
        return False
    for raw, entry_index, entry_term in message.entries:
        index += 1
        if entry_index != index or entry_term < term or len(raw) > COMMAND_BYTES_MAX + 1:
            return False
        kind = raw[:1]
        if kind != COMMAND and kind != NO_OP and (kind != CONFIGURATION or decode_configuration(raw[1:]) is None):
            return False
        term = entry_term
    return term <= message.sender_term
