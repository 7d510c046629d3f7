"""Who founds the mesh: fresh Core nodes agree once on one set of voters. Pure; `founder.py` is its shell.

The rules, for a proposal P = (mesh id, voters, proposer, number):

1. A fresh Core node that sees at least `expect` fresh Core nodes (itself included) and has the lowest id of them
   proposes the `expect` lowest ids. It promises P itself, durably, before it tells anybody. It first lets the sight
   settle (`sight.py`), lest two groups that are about to meet found a mesh each.
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
6. A number or floor more than FLOOR_JUMP_MAX ahead is not believed: as if the message had been lost.
7. A fresh Core node that meets a founded node joins its mesh: it adopts the founding, in which it is no voter. It then
   learns, and votes when the mesh wants it (`consensus.membership`). It cannot found another mesh beside it any more.

This is two-phase commit with cooperative termination (Bernstein, Hadzilacos, Goodman 1987, section 7.4). A time-out
alone never breaks a promise: the proposer may have founded the mesh an instant before it vanished. What can block is
the loss for good of the proposer and of another member within the same few milliseconds; the status says what to do.
"""

import hashlib
from typing import Final, assert_never

import msgspec

from mesh.founding_status import describe
from mesh.founding_steps import Effect, Input, Known, LinkDown, LinkUp, MeshFounded, Received, Save, Send, Tick
from mesh.limits import FOUNDING_SETTLE_S, PROMISE_UNREACHABLE_S
from mesh.proposals import (
    FLOOR_JUMP_MAX,
    NUMBER_MAX,
    Announce,
    FoundingRecord,
    Message,
    Never,
    Promise,
    Propose,
    Withdraw,
    floor_of,
    make_mesh_id,
)
from mesh.sight import Sight
from mesh.tiers import may_vote
from storage.ids import MeshId, NodeId

_RETRY_S: Final = 0.5
"""Shortest wait before proposing again after a dead proposal; jittered to three times that by id and number."""


class Bootstrap:
    """One node's part. `step` takes one input and returns effects in order; `now` is monotonic seconds."""

    def __init__(self, own: NodeId, tier: str, expect: int, record: FoundingRecord | None, now: float) -> None:
        self.own = own
        self._tier = tier
        self._expect = expect
        self.record = record
        self._sight = Sight(own, expect, now)
        self._promises: set[NodeId] = set()  # to this node as collector, in this run
        self._held_since = now  # when the present promise was made or read
        self._propose_at = now
        self.wake_at: float | None = None
        """When to tick, if sooner than the ordinary pace."""
        self._is_told = False
        self._now = now

    @property
    def is_founded(self) -> bool:
        return self.record is not None and self.record.state == "founded"

    @property
    def floor(self) -> int:
        return floor_of(self.record)

    def status(self) -> str:
        """One sentence for the log and the status page."""
        return describe(self.record, self._sight, self._tier, self._now)

    def step(self, given: Input, now: float, wall_ms: int) -> list[Effect]:
        """Take one input. `wall_ms` only labels a new founding."""
        effects: list[Effect] = []
        self._now = now
        self.wake_at = None
        match given:
            case LinkUp(peer):
                self._sight.link_up(peer)
                effects.append(Send(peer, self._announce()))
            case LinkDown(peer):
                self._sight.link_down(peer, now)
            case Received(peer, message):
                if peer in self._sight.linked:
                    self._receive(peer, message, now, effects)
            case Tick():
                self._tick(now, effects)
            case Known(count):
                self._sight.unlinked_count = count
            case _:
                assert_never(given)
        if not self.is_founded:
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
                self._sight.announced(peer, message, now)
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
        if is_takeover and proposal.proposer in self._sight.linked and not (held is not None and held.is_taken_over):
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
            and may_vote(self._tier)
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
        sight = self._sight
        if founded := sight.founded():
            self._found(founded[0], effects)  # rule 7
            return
        if not may_vote(self._tier):
            return
        voters = sight.voters(self.floor)
        if not voters or voters[0] != self.own:
            return
        due = max(self._propose_at, sight.settled_at(self.floor))
        if now < due:
            self.wake_at = min(due, now + FOUNDING_SETTLE_S)  # what is known may change without an input
            return
        number = sight.next_number(voters, self.floor)
        if number > NUMBER_MAX:
            return
        mesh_id = make_mesh_id(self.own, number, wall_ms, voters)
        proposal = FoundingRecord("promised", mesh_id, voters, self.own, wall_ms, number=number, floor=number)
        self._promises = set()
        self._held_since = now
        if len(voters) == 1:
            self._found(proposal, effects)
            return
        self._save(proposal, effects)
        self._collect(proposal, effects)
        self._tell_all(effects)

    def _tick(self, now: float, effects: list[Effect]) -> None:
        held = self.record
        if held is None or held.state != "promised":
            return
        if held.proposer == self.own:
            if held.is_withdrawn or self._should_withdraw(held, now):
                if not held.is_withdrawn:
                    held = msgspec.structs.replace(held, is_withdrawn=True)
                    self._save(held, effects)
                effects += [Send(voter, Withdraw(held)) for voter in held.voters if voter in self._sight.linked]
            else:
                self._collect(held, effects)
        elif held.is_taken_over or self._sight.gone_s(held.proposer, now) >= PROMISE_UNREACHABLE_S:
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
        present = [voter for voter in others if voter in self._sight.linked]
        is_stuck = any(self._sight.gone_s(voter, now) >= PROMISE_UNREACHABLE_S for voter in others)
        replacements = [peer for peer in self._sight.fresh_peers(self.floor) if peer not in held.voters]
        return is_stuck and bool(present) and 1 + len(present) + len(replacements) >= self._expect

    def _collects(self, held: FoundingRecord) -> bool:
        return held.is_taken_over if held.proposer != self.own else not held.is_withdrawn

    def _collect(self, held: FoundingRecord, effects: list[Effect]) -> None:
        missing = (voter for voter in held.voters if voter != self.own and voter not in self._promises)
        effects += [Send(voter, Propose(held)) for voter in missing if voter in self._sight.linked]

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
            if voter != self.own and voter in self._sight.linked
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
        effects += [Send(peer, self._announce()) for peer in sorted(self._sight.linked)]

    def _is_jump(self, number: int) -> bool:
        return number > self.floor + FLOOR_JUMP_MAX


def _jitter(own: NodeId, number: int) -> float:
    return int.from_bytes(hashlib.blake2b(f"{own}|{number}".encode(), digest_size=4).digest(), "big") / 2**32
