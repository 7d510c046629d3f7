"""What a Leaf and its parent say to each other, over requests and notices of their link.

Up: `attach` (may I?), `report` (outcomes, signed), `register` (I take work), `seen`, `http...`, and live news.
Down: `work` (assignments); notices `stop` (attempts), `told` (leader, alternatives), `again` (register), `move`.

Rules:
- every assignment may come twice, and comes again from the leases whenever a Leaf registers: attempts have numbers.
- an outcome is repeated until it is answered; what is answered is settled for good, recorded or not.
- fields may be added at the end, with defaults.

Decoding takes any bytes and raises CodecError only.
"""

from typing import Final, TypeVar

from consensus.state.commands import Outcome
from consensus.state.rows import RitualOffer, Row
from mesh.parents import Alternative
from node.executor.work import AttemptKey, BranchInput, Work
from node.uplinks.limits import PAYLOAD_BYTES_MAX
from storage import codec
from storage.errors import CodecError
from storage.ids import NodeId

ATTACH: Final = "uplink.attach"
REPORT: Final = "uplink.report"
REGISTER: Final = "uplink.register"
SEEN: Final = "uplink.seen"
HTTP_OPEN: Final = "uplink.http.open"
HTTP_MORE: Final = "uplink.http.more"
HTTP_CLOSE: Final = "uplink.http.close"
WORK: Final = "uplink.work"
STOP: Final = "uplink.stop"
TOLD: Final = "uplink.told"
AGAIN: Final = "uplink.again"
MOVE: Final = "uplink.move"

Value = TypeVar("Value")


class Attach(Row, frozen=True, kw_only=True):
    """The first thing on an uplink. Who asks is known from the link."""

    name: str


class Told(Row, frozen=True, kw_only=True):
    """What a parent tells of the mesh: at attaching, and when it changes."""

    parent: NodeId
    name: str
    tier: str
    leader: NodeId | None = None
    leader_name: str = ""
    alternatives: list[Alternative] = []


class Attached(Row, frozen=True, kw_only=True):
    """The answer. `refusal` is empty if the Leaf is taken; otherwise a code, and `detail` says it in words."""

    told: Told
    refusal: str = ""
    detail: str = ""


class Register(Row, frozen=True, kw_only=True):
    """What the Leaf offers. `at_ms` rises with every registration of an instance, whoever passes it on. `running`: what
    it works on."""

    name: str
    http_address: str
    slots: int
    async_slots: int
    rituals: dict[str, RitualOffer]
    software: str
    at_ms: int
    running: list[AttemptKey] = []
    labels: dict[str, str] = {}
    ritual_limits: dict[str, int] = {}


class Registered(Row, frozen=True, kw_only=True):
    """`stop`: of what it works on, that which is not its any more."""

    stop: list[AttemptKey] = []


class Assigned(Row, frozen=True, kw_only=True):
    """One attempt to execute. The inputs of a consolidation come in parts, of which the last starts it."""

    work: Work
    inputs: list[BranchInput] = []
    is_last: bool = True


class SignedOutcomes(Row, frozen=True, kw_only=True):
    """Encoded Outcomes, with the proof of the node that made them: its signature over `signable`."""

    contents: list[bytes]
    proof: bytes


class Verdict(Row, frozen=True, kw_only=True):
    """What became of an outcome: `recorded`, `superseded` (kept as evidence), `refused` (not its, or not proven)."""

    key: AttemptKey
    result: str


class HttpOpen(Row, frozen=True, kw_only=True):
    """A request, under a number that the Leaf has not used on this link: it can end the answer before it has heard of
    it."""

    stream: int
    request: bytes


class HttpPart(Row, frozen=True, kw_only=True):
    """Of an answer: raw bytes of HTTP. `is_end`: there are no more."""

    stream: int
    data: bytes
    is_end: bool


def encode(value: object) -> bytes:
    return codec.encode(value)


def decode(data: bytes, kind: type[Value]) -> Value:
    """Raises CodecError."""
    return codec.decode(data, kind, PAYLOAD_BYTES_MAX)


def signable(mesh_name: str, contents: list[bytes]) -> bytes:
    """The outcomes, and where they belong: so that a signature proves nothing anywhere else."""
    return b"meshnode outcomes/1 " + mesh_name.encode() + b"\0" + codec.encode(contents)


def outcome_of(content: bytes) -> Outcome | None:
    try:
        return codec.decode(content, Outcome, PAYLOAD_BYTES_MAX)
    except CodecError:
        return None


def key_of(outcome: Outcome) -> AttemptKey:
    return AttemptKey(outcome.session_id, outcome.branch_index, outcome.attempt)


def decoded(payload: bytes, kind: type[Value]) -> Value | None:
    """None for what cannot be read: of notices, which nobody answers."""
    try:
        return decode(payload, kind)
    except CodecError:
        return None
