"""What `bootstrap.py` takes, one input at a time, and what its shell then carries out, in order. Pure."""

from dataclasses import dataclass

from mesh.proposals import FoundingRecord, Message
from storage.ids import NodeId


@dataclass(frozen=True, slots=True)
class LinkUp:
    peer: NodeId


@dataclass(frozen=True, slots=True)
class LinkDown:
    peer: NodeId


@dataclass(frozen=True, slots=True)
class Received:
    peer: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. Needed about once a second until founded, and once at the start."""


@dataclass(frozen=True, slots=True)
class Known:
    """So many nodes are hinted at and not linked: they are being dialled. From strangers too, so it costs time only."""

    count: int


Input = LinkUp | LinkDown | Received | Tick | Known


@dataclass(frozen=True, slots=True)
class Save:
    """Make the record durable. Effects after it in the list must wait until it is."""

    record: FoundingRecord


@dataclass(frozen=True, slots=True)
class Send:
    """To a linked peer; may be lost, never retried by the shell."""

    peer: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class MeshFounded:
    """This node belongs to a founded mesh. Given once, after the record is saved."""

    record: FoundingRecord


Effect = Save | Send | MeshFounded
