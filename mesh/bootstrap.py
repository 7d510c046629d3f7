"""Who founds the mesh: fresh Core nodes agree once on one set of voters. Pure; `founder.py` is its shell.

The rules, for a proposal P = (mesh id, voters, proposer, number):

1. A fresh Core node that sees at least `expect` fresh Core nodes (itself included) and has the lowest id of them
   proposes the `expect` lowest ids. It promises P itself, durably, before it tells anybody. It first lets the sight
   settle (`_settling_s`), lest two groups that are about to meet found a mesh each.
2. A node promises at most one proposal at a time, durably, before it answers. It never promises a number at or below
   its durable `floor`; promising, and refusing, raise the floor to the number.
3. P is founded by whoever knows that ALL its voters promised it. Two proposals that share a voter can therefore
   never both be founded, unless a promise was taken back. A promise is taken back only when P is provably dead:
   a. some voter says Never(P): it has not promised P, and its floor forbids it to; or
   b. the proposer durably withdrew (so it will not found P), and this node gave its promise to no one else.
4. A promise is evidence for whoever it was given to, first the proposer. When the proposer has been out of reach for
   PROMISE_UNREACHABLE_S, any member collects the promises in its place (the proposer's is implied by rule 1). Two
   collectors do no harm: they found the same mesh id. A node that took part in this durably remembers it (rule 3b)
   and goes on when the proposer is back: that one may have withdrawn meanwhile, and collects no more.
5. A member that meets a founded node adopts its founding, so lost messages and crashes only cost time.
6. A number or floor more than _FLOOR_JUMP_MAX ahead is not believed: as if the message had been lost.

This is two-phase commit with cooperative termination (Bernstein, Hadzilacos, Goodman 1987, section 7.4). A time-out
alone never breaks a promise: the proposer may have founded the mesh an instant before it vanished. What can block is
the loss for good of the proposer and of another member within the same few milliseconds; the status says what to do.
"""

import hashlib
from dataclasses import dataclass
from typing import Final, assert_never

import msgspec

from mesh.limits import FOUNDING_CROWD_S, FOUNDING_SETTLE_S, PROMISE_UNREACHABLE_S
from mesh.proposals import (
    NUMBER_MAX,
    Announce,
    FoundingRecord,
    Message,
    Never,
    Promise,
    Propose,
    Withdraw,
    decode_message,
    encode_message,
)
from storage.ids import MeshId, NodeId

_RETRY_S: Final = 0.5
"""Shortest wait before proposing again after a dead proposal; jittered to three times that by id and number."""

_FLOOR_JUMP_MAX: Final = 2**16
"""How far apart founding numbers of honest nodes may be. Whoever is further ahead lies, or was lied to: followed once,
it would use up the numbers for good, for floors are durable."""


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


class Bootstrap:
    """One node's part. `step` takes one input and returns effects in order; `now` is monotonic seconds."""

    def __init__(self, own: NodeId, tier: str, expect: int, record: FoundingRecord | None, now: float) -> None:
        self.own = own
        self._tier = tier
        self._expect = expect
        self.record = record
        self._views: dict[NodeId, Announce] = {}  # linked peers that announced themselves
        self._linked: set[NodeId] = set()
        self._down_at: dict[NodeId, float] = {}
        self._started_at = now
        self._promises: set[NodeId] = set()  # to this node as collector, in this run
        self._held_since = now  # when the present promise was made or read
        self._propose_at = now
        self._known_count = 0
        self._stands: dict[NodeId, MeshId | None] = {}  # each Core node ever seen: the proposal it had promised
        self._stands_since = now  # when that last changed
        self.wake_at: float | None = None
        """When to tick, if sooner than the ordinary pace."""
        self._is_told = False
        self._now = now

    @property
    def is_founded(self) -> bool:
        return self.record is not None and self.record.state == "founded"

    @property
    def floor(self) -> int:
        return 0 if self.record is None else self.record.floor

    def step(self, given: Input, now: float, wall_ms: int) -> list[Effect]:
        """Take one input. `wall_ms` only labels a new founding."""
        effects: list[Effect] = []
        self._now = now
        self.wake_at = None
        match given:
            case LinkUp(peer):
                self._linked.add(peer)
                self._down_at.pop(peer, None)
                effects.append(Send(peer, self._announce()))
            case LinkDown(peer):
                self._linked.discard(peer)
                self._views.pop(peer, None)
                self._down_at[peer] = now
            case Received(peer, message):
                if peer in self._linked:
                    self._receive(peer, message, now, effects)
            case Tick():
                self._tick(now, effects)
            case Known(count):
                self._known_count = count
            case _:
                assert_never(given)
        if not self.is_founded and self._tier == "core":
            self._maybe_propose(now, wall_ms, effects)
        if self.is_founded and not self._is_told:
            assert self.record is not None
            self._is_told = True
            effects.append(MeshFounded(self.record))
        return effects

    # --- messages ---

    def _receive(self, peer: NodeId, message: Message, now: float, effects: list[Effect]) -> None:
        match message:
            case Announce():
                self._views[peer] = message
                self._note_stand(peer, message, now)
                self._on_announce(peer, message.record, now, effects)
            case Propose(proposal):
                self._on_propose(peer, proposal, now, effects)
            case Promise(mesh_id):
                held = self._held(mesh_id)
                if held is not None and peer in held.voters and self._collects(held):
                    self._promises.add(peer)
                    self._maybe_found(held, effects)
            case Never(mesh_id, floor):
                held = self._held(mesh_id)
                if held is not None and peer in held.voters:
                    self._release(held, floor, now, effects)
            case Withdraw(proposal):
                held = self._held(proposal.mesh_id)
                if self.is_founded:
                    effects.append(Send(peer, self._announce()))
                elif held is None:
                    self._never(peer, proposal, effects)
                elif peer == held.proposer and not held.is_taken_over:
                    self._release(held, 0, now, effects)
            case _:
                assert_never(message)

    def _on_announce(self, peer: NodeId, theirs: FoundingRecord | None, now: float, effects: list[Effect]) -> None:
        if theirs is None or theirs.state == "fresh" or self.own not in theirs.voters:
            return
        if theirs.state == "founded":
            record = self.record
            # A promise for another proposal cannot exist beside a founding that includes us (rule 3), except on a
            # node whose disk was tampered with: it must not follow, `status` says why.
            if record is None or record.state == "fresh" or self._held(theirs.mesh_id) is not None:
                self._found(theirs, effects)
        elif self.is_founded:
            if self.record is not None and self.record.mesh_id != theirs.mesh_id:
                effects.append(Send(peer, Never(theirs.mesh_id, self.floor)))
        elif self._held(theirs.mesh_id) is None and theirs.number <= self.floor:
            effects.append(Send(peer, Never(theirs.mesh_id, self.floor)))

    def _on_propose(self, peer: NodeId, proposal: FoundingRecord, now: float, effects: list[Effect]) -> None:
        if self.is_founded:
            # A member adopts it; to a stranger this voter says that it is taken.
            effects.append(Send(peer, self._announce()))
            assert self.record is not None
            if self.record.mesh_id != proposal.mesh_id:
                effects.append(Send(peer, Never(proposal.mesh_id, self.floor)))
            return
        is_takeover = peer != proposal.proposer
        held = self._held(proposal.mesh_id)
        if is_takeover and proposal.proposer in self._linked and not (held is not None and held.is_taken_over):
            return  # the proposer is there: it collects, or it withdraws
        if held is not None:
            if is_takeover and not held.is_taken_over:
                self._save(msgspec.structs.replace(held, is_taken_over=True), effects)
            effects.append(Send(peer, Promise(proposal.mesh_id)))
        elif self._may_promise(peer, proposal):
            self._held_since = now
            self._promises = set()
            promised = msgspec.structs.replace(
                proposal,
                state="promised",
                floor=proposal.number,
                is_withdrawn=False,
                is_taken_over=is_takeover,
            )
            self._save(promised, effects)
            effects.append(Send(peer, Promise(proposal.mesh_id)))
            self._tell_all(effects)
        else:
            self._never(peer, proposal, effects)

    def _may_promise(self, peer: NodeId, proposal: FoundingRecord) -> bool:
        is_free = self.record is None or self.record.state == "fresh"
        return (
            is_free
            and self._tier == "core"
            and self.own in proposal.voters
            and peer in proposal.voters
            and len(proposal.voters) == self._expect
            and proposal.number > self.floor
            and not self._is_jump(proposal.number)
        )

    def _never(self, peer: NodeId, proposal: FoundingRecord, effects: list[Effect]) -> None:
        """Refuse for ever: the floor is durable before the word is spoken. Nobody asks a stranger to the proposal."""
        if self.own not in proposal.voters or self._is_jump(proposal.number):
            return
        if proposal.number > self.floor:
            record = self.record or FoundingRecord("fresh", MeshId(""), (), self.own, 0)
            self._save(msgspec.structs.replace(record, floor=proposal.number), effects)
        effects.append(Send(peer, Never(proposal.mesh_id, self.floor)))

    # --- deciding ---

    def _maybe_propose(self, now: float, wall_ms: int, effects: list[Effect]) -> None:
        if self.record is not None and self.record.state != "fresh":
            return
        if any(view.record is not None and view.record.state == "founded" for view in self._views.values()):
            return  # there is a mesh; founding a second one beside it would be an accident
        candidates = sorted([self.own, *self._fresh_peers()])
        if len(candidates) < self._expect or candidates[0] != self.own:
            return
        due = max(self._propose_at, self._stands_since + self._settling_s())
        if now < due:
            self.wake_at = min(due, now + FOUNDING_SETTLE_S)  # what is known may change without an input
            return
        voters = tuple(candidates[: self._expect])
        floors = [self.floor, *(_floor(self._views[voter]) for voter in voters[1:])]
        # All are near the own floor, but perhaps not near each other: no voter may take the number for a jump.
        number = max(floor for floor in floors if floor < min(floors) + _FLOOR_JUMP_MAX) + 1
        if number > NUMBER_MAX:
            return
        mesh_id = _mesh_id(self.own, number, wall_ms, voters)
        proposal = FoundingRecord("promised", mesh_id, voters, self.own, wall_ms, number=number, floor=number)
        self._promises = set()
        self._held_since = now
        if len(voters) == 1:
            self._found(proposal, effects)
            return
        self._save(proposal, effects)
        self._collect(proposal, effects)
        self._tell_all(effects)

    def _settling_s(self) -> float:
        """How long nobody new may have been seen before this node proposes.

        A promise seen elsewhere is about to become a mesh; if members of it are lost for good, it must not block for
        ever.
        """
        if self._expect == 1:
            return 0.0  # the operator said that this node is the whole mesh
        if self._promised_peers():
            return 2 * PROMISE_UNREACHABLE_S
        unclear = self._known_count + len(self._linked - self._views.keys())
        is_crowd = unclear > 0 or 1 + len(self._fresh_peers()) > self._expect
        return FOUNDING_CROWD_S if is_crowd else FOUNDING_SETTLE_S

    def _note_stand(self, peer: NodeId, view: Announce, now: float) -> None:
        """Comings and goings of the same peer do not count, so that one bad cable delays nobody."""
        stand = view.record.mesh_id if view.record is not None and view.record.state == "promised" else None
        if view.tier == "core" and (peer not in self._stands or self._stands[peer] != stand):
            self._stands[peer] = stand
            self._stands_since = now

    def _tick(self, now: float, effects: list[Effect]) -> None:
        held = self.record
        if held is None or held.state != "promised":
            return
        if held.proposer == self.own:
            if held.is_withdrawn or self._should_withdraw(held, now):
                if not held.is_withdrawn:
                    held = msgspec.structs.replace(held, is_withdrawn=True)
                    self._save(held, effects)
                effects += [Send(voter, Withdraw(held)) for voter in held.voters if voter in self._linked]
            else:
                self._collect(held, effects)
        elif held.is_taken_over or self._gone_s(held.proposer, now) >= PROMISE_UNREACHABLE_S:
            # Once taken over it is seen through: the proposer that comes back may have withdrawn, and waits for us.
            if not held.is_taken_over:
                held = msgspec.structs.replace(held, is_taken_over=True)
                self._save(held, effects)
            self._collect(held, effects)
            self._maybe_found(held, effects)

    def _should_withdraw(self, held: FoundingRecord, now: float) -> bool:
        """A member is long away, one that could declare the proposal dead is here, and so is a replacement."""
        if now - self._held_since < PROMISE_UNREACHABLE_S:
            return False
        others = [voter for voter in held.voters if voter != self.own]
        present = [voter for voter in others if voter in self._linked]
        is_stuck = any(self._gone_s(voter, now) >= PROMISE_UNREACHABLE_S for voter in others)
        replacements = [peer for peer in self._fresh_peers() if peer not in held.voters]
        return is_stuck and bool(present) and 1 + len(present) + len(replacements) >= self._expect

    def _collects(self, held: FoundingRecord) -> bool:
        return held.is_taken_over if held.proposer != self.own else not held.is_withdrawn

    def _collect(self, held: FoundingRecord, effects: list[Effect]) -> None:
        missing = (voter for voter in held.voters if voter != self.own and voter not in self._promises)
        effects += [Send(voter, Propose(held)) for voter in missing if voter in self._linked]

    def _maybe_found(self, held: FoundingRecord, effects: list[Effect]) -> None:
        if self._collects(held) and self._promises | {self.own, held.proposer} >= set(held.voters):
            self._found(held, effects)

    def _found(self, proposal: FoundingRecord, effects: list[Effect]) -> None:
        floor = max(self.floor, proposal.number)
        self._save(msgspec.structs.replace(proposal, state="founded", floor=floor), effects)
        self._tell_all(effects)

    def _release(self, held: FoundingRecord, floor: int, now: float, effects: list[Effect]) -> None:
        """The proposal is dead: be fresh again, and tell its other members."""
        floor = max(self.floor, held.number, 0 if self._is_jump(floor) else floor)
        self._save(FoundingRecord("fresh", MeshId(""), (), self.own, 0, floor=floor), effects)
        self._promises = set()
        self._propose_at = now + _RETRY_S * (1 + 2 * _jitter(self.own, floor))
        effects += [
            Send(voter, Never(held.mesh_id, floor))
            for voter in held.voters
            if voter != self.own and voter in self._linked
        ]
        self._tell_all(effects)

    # --- small things ---

    def _held(self, mesh_id: MeshId) -> FoundingRecord | None:
        record = self.record
        return record if record is not None and record.state == "promised" and record.mesh_id == mesh_id else None

    def _save(self, record: FoundingRecord, effects: list[Effect]) -> None:
        self.record = record
        effects.append(Save(record))

    def _announce(self) -> Announce:
        return Announce(self._tier, self._expect, self.record)

    def _tell_all(self, effects: list[Effect]) -> None:
        effects += [Send(peer, self._announce()) for peer in sorted(self._linked)]

    def _gone_s(self, peer: NodeId, now: float) -> float:
        return 0.0 if peer in self._linked else now - self._down_at.get(peer, self._started_at)

    def _fresh_peers(self) -> list[NodeId]:
        return [
            peer
            for peer, view in self._views.items()
            if view.tier == "core"
            and view.expect == self._expect
            and (view.record is None or view.record.state == "fresh")
            and abs(_floor(view) - self.floor) < _FLOOR_JUMP_MAX
        ]

    def _promised_peers(self) -> list[NodeId]:
        return sorted(
            peer
            for peer, view in self._views.items()
            if view.tier == "core" and view.record is not None and view.record.state == "promised"
        )

    def _is_jump(self, number: int) -> bool:
        return number > self.floor + _FLOOR_JUMP_MAX

    # --- words ---

    def status(self) -> str:
        """One sentence for the log and the status page."""
        record = self.record
        if record is not None and record.state == "founded":
            return f"mesh {record.mesh_id} of {len(record.voters)} voters"
        founded = [view.record for view in self._views.values() if view.record and view.record.state == "founded"]
        if self._tier != "core":
            return "waiting for a founded mesh" if not founded else f"linked to mesh {founded[0].mesh_id}"
        if record is not None and record.state == "promised":
            return self._status_promised(record, founded)
        if founded:
            return (
                f"mesh {founded[0].mesh_id} is founded by {', '.join(founded[0].voters)}; joining an existing mesh as "
                "a new voter comes with membership changes in a later version"
            )
        odd = {view.expect for view in self._views.values() if view.tier == "core"} - {self._expect}
        if odd:
            return (
                f"waiting: this node has bootstrap_expect = {self._expect}, others have "
                f"{', '.join(map(str, sorted(odd)))}; set the same number on every Core node"
            )
        floors = {peer: _floor(view) for peer, view in self._views.items() if view.tier == "core"}
        if self.floor >= min([NUMBER_MAX, *(floor + _FLOOR_JUMP_MAX for floor in floors.values())]):
            return _spoilt(self.own)
        spoilt = [peer for peer, floor in floors.items() if floor >= self.floor + _FLOOR_JUMP_MAX]
        if spoilt:
            return _spoilt(min(spoilt))
        return self._status_fresh()

    def _status_fresh(self) -> str:
        here = 1 + len(self._fresh_peers())
        missing = self._expect - here
        if missing <= 0 and (promised := self._promised_peers()):
            return f"waiting: {', '.join(promised)} may be founding a mesh already"
        if missing < 0:
            return (
                f"{here} Core nodes here, more than bootstrap_expect = {self._expect}: the {self._expect} lowest ids "
                f"found the mesh once nobody new has come for {FOUNDING_CROWD_S:g} s; the others do not vote in it"
            )
        if missing == 0 and self._known_count:
            return f"{here} Core nodes here, waiting up to {FOUNDING_CROWD_S:g} s for others that are being dialled"
        if missing == 0:
            return f"agreeing with {here - 1} others on founding the mesh"
        return f"{'alone' if here == 1 else f'{here} Core nodes here'}, waiting for {missing} more"

    def _status_promised(self, record: FoundingRecord, founded: list[FoundingRecord]) -> str:
        if any(self.own in other.voters and other.mesh_id != record.mesh_id for other in founded):
            return (
                f"this node promised to found {record.mesh_id} but is a voter of another founded mesh: its data "
                "directory was changed or restored; remove it to start as a new node"
            )
        away = [voter for voter in record.voters if voter != self.own and voter not in self._linked]
        if not away:
            return "agreeing on founding the mesh"
        text = f"founding the mesh, waiting for {', '.join(away)}"
        if all(self._gone_s(voter, self._now) < PROMISE_UNREACHABLE_S for voter in away):
            return text
        return (
            f"{text} to come back; if gone for good, remove the data directories of "
            f"{', '.join(voter for voter in record.voters if voter not in away)} and start again: no mesh is founded"
        )


def _mesh_id(own: NodeId, number: int, wall_ms: int, voters: tuple[NodeId, ...]) -> MeshId:
    """Unique without dice: `own` never uses a number twice, and the time covers a data directory that was removed."""
    text = f"{own}|{number}|{wall_ms}|{','.join(voters)}"
    return MeshId(hashlib.blake2b(text.encode(), digest_size=16, person=b"meshnode-founded").hexdigest())


def _floor(view: Announce) -> int:
    return 0 if view.record is None else view.record.floor


def _spoilt(node_id: NodeId) -> str:
    return (
        f"waiting: the founding number of {node_id} is out of all proportion, so no mesh can be founded with it; "
        "stop that node, remove its data directory and start it as a new node"
    )


def _jitter(own: NodeId, number: int) -> float:
    return int.from_bytes(hashlib.blake2b(f"{own}|{number}".encode(), digest_size=4).digest(), "big") / 2**32


__all__ = [
    "Announce",
    "Bootstrap",
    "Effect",
    "FoundingRecord",
    "Input",
    "Known",
    "LinkDown",
    "LinkUp",
    "MeshFounded",
    "Message",
    "Never",
    "Promise",
    "Propose",
    "Received",
    "Save",
    "Send",
    "Tick",
    "Withdraw",
    "decode_message",
    "encode_message",
]
