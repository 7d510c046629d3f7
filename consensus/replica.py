"""One voter or learner as a synchronous machine: inputs and time go in, what to say and what is decided comes out.

One step = one tick of the engine = at most one write transaction = one fsync. New log entries, term and vote, the rows
changed by applied commands and the applied index are committed together, so applied state never disagrees with the
applied index. A step that writes nothing opens no transaction.

Nothing is told to anybody before it is durable, with one exception: a leader hands its entries to followers before it
writes them itself (Ongaro, Consensus: Bridging Theory and Practice, section 10.2.1). It is safe because only its term
must be durable for that, and it is. It then waits for them a moment, and writes the entries in the transaction that
applies them; what rests on its own copy is told after that. If it dies in between, followers may hold entries that it
has lost, which is what elections are for. Of three disk waits in a row two are left.

Crash only: if a step raises, the object is dead and everything it would have said is lost, exactly as if the process
had been killed. Construct a new one from the store; it continues with what was committed, and replays nothing.

No clock, no dice, no I/O but the store.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

import msgspec

from consensus.comparison import Comparison
from consensus.election import Election
from consensus.engine import Engine, Role
from consensus.errors import ApplyFailed, ReplicaDead, SnapshotInstalled, UpgradeRequired
from consensus.guard import Guard
from consensus.journal import QUARANTINE_KEY, RAFT_TABLE, Journal, read_quarantine
from consensus.limits import COMMAND_BYTES_MAX, RaftSettings
from consensus.members import Members, begin
from consensus.membership import Change, Refusal
from consensus.messages import (
    COMMAND,
    CONFIGURATION,
    EARLY,
    AnyMessage,
    Checkpoint,
    Commit,
    Entry,
    NextIndex,
    decode_frame,
    pack_frames,
)
from consensus.reads import Reads
from consensus.snapshot import HoldLog, InstallSnapshot, LogHold, Quarantine, install
from consensus.steps import (
    Input,
    LinkDown,
    LinkUp,
    Output,
    PeerMessage,
    Propose,
    ProposeChange,
    ReadIndex,
    ReplicaStatus,
    Resolved,
    SpeakEarly,
    StateMachine,
    TransferLeadership,
)
from storage.dump import Header
from storage.errors import StorageError, StoreBusy
from storage.ids import NodeId
from storage.transactions import Store, WriteTransaction


class Replica:
    def __init__(
        self,
        node_id: NodeId,
        voters: Sequence[NodeId],
        store: Store,
        machine: StateMachine,
        settings: RaftSettings,
        rng: random.Random,
        now: float,
    ) -> None:
        """The store needs `journal.TABLES` and those of the machine. `voters` are those of the founding: the first
        configuration, at the first start. A newcomer knows none: whoever leads will tell it."""
        self.node_id = node_id
        self._store = store
        self._machine = machine
        self._settings = settings
        self._rng = rng
        self._is_dead = False
        begin(store, voters)
        self.quarantine_reason = self._durable_quarantine = read_quarantine(store)
        """Empty: it is in none. In quarantine nothing is applied, so that a snapshot of others is soon ahead; it goes
        on voting and storing the log, which is not in doubt."""
        Engine.enter(now, rng)
        self.journal = Journal(store, settings)
        self.engine = Engine(node_id, self.journal, settings, self)
        self.election = Election(self.engine)
        self.reads = Reads(self.engine)
        self.guard = Guard(self.engine, self.election, self.reads)
        self.members = Members(self.engine)
        if self.engine.is_sole_voter:
            self.engine.election_deadline = 0.0
        self._txn: WriteTransaction | None = None
        self._now = now
        self._proposals: list[tuple[int, bytes]] = []
        self._waiting: dict[int, int] = {}
        """Log index -> token of proposals of this term of leadership."""
        self._log_hold = LogHold()
        self._transfer_until: float | None = None
        self._has_asked_successor = False
        self._outbox: list[tuple[NodeId, AnyMessage]] = []
        self._resolved: list[Resolved] = []
        self._events: list[Any] = []
        self._comparison = Comparison()
        self._tell_commit_at: float | None = None
        """When followers are told what is committed, unless entries tell them before."""
        self._durable_term = self.engine.term
        # What the status of every step shares until it changes:
        self._connected: tuple[NodeId, ...] = ()
        self._dropped: dict[str, int] = {}
        self._dropped_count = 0

    def step(self, inputs: Iterable[Input], now: float, speak_early: SpeakEarly | None = None) -> Output:
        """Take in what has arrived, tick once, make it durable. Time never goes back. What need not wait for the disk
        goes to `speak_early` just before the write. Whatever it raises, the replica is dead: StorageError is the
        world's fault, anything else is a bug in it or in the state machine."""
        if self._is_dead:
            raise ReplicaDead
        self._is_dead = True
        try:
            output = self._step(inputs, now, speak_early)
        except BaseException:
            if self._txn is not None:
                self._txn.abort()
            raise
        self._is_dead = False
        return output

    @property
    def status(self) -> ReplicaStatus:
        engine = self.engine
        dropped = self.guard.dropped
        if sum(dropped.values()) != self._dropped_count:
            self._dropped, self._dropped_count = dict(dropped), sum(dropped.values())
        return ReplicaStatus(
            self.node_id,
            engine.role,
            engine.term,
            engine.leader,
            engine.commit_index,
            engine.applied_index,
            self.journal.last_index,
            self.journal.first_index,
            self.journal.configuration.voters,
            self._connected,
            {peer: engine.match_index(peer) for peer in engine.peers} if engine.is_leader else {},
            self.is_quarantined,
            self._comparison.latest,
            self._dropped,
            self.reads.fresh_at,
            self.quarantine_reason,
            self.is_quarantined or self.guard.needs_snapshot,
            tuple(sorted(engine.withdrawn)) if engine.withdrawn and engine.is_leader else (),
            0,
            self.journal.configuration,
            self.journal.is_changing,
            self.guard.is_told_removed or self.node_id in self.journal.configuration.removed,
            self.members.heard,
            self.members.caught_up,
            engine.is_leader and not engine.has_committed_in_term,
        )

    @property
    def is_quarantined(self) -> bool:
        return bool(self.quarantine_reason)

    def open_proposals(self) -> list[int]:
        """Tokens of those whose end has not been told; of a dead replica too."""
        tokens = [*self._waiting.values(), *(token for token, _ in self._proposals), *self.reads.rounds.tokens()]
        return [*tokens, *(resolved.token for resolved in self._resolved)]

    # -- the tick --

    def _step(self, inputs: Iterable[Input], now: float, speak_early: SpeakEarly | None) -> Output:
        self._now = now
        engine = self.engine
        engine.enter(now, self._rng)
        for given in inputs:
            self._take_in(given)
        self.election.before_tick(now)
        term = engine.term
        if engine.is_leader and engine.peers:
            engine.lead()
            self._speak_early(speak_early)
        engine.tick()
        if engine.is_sole_voter:
            engine.tick()  # alone, what was just appended is agreed; it becomes durable and applied in one
        if engine.role is Role.CANDIDATE and engine.term != term:
            self.election.on_started(now)
        self._transfer()
        self._resolved += [Resolved(token, index, None, None) for token, index in self.reads.step(now)]
        self._tell_commit()
        self._compare_checkpoints()
        if self.quarantine_reason != self._durable_quarantine:
            self._write().put(RAFT_TABLE, QUARANTINE_KEY, self.quarantine_reason.encode())
            self._durable_quarantine = self.quarantine_reason
        if self.journal.is_long:
            followers = self._connected if engine.is_leader else ()
            held = [engine.match_index(peer) for peer in followers]
            self.journal.held_from = self._log_hold.needed_from(held, now)
        if self.members.look(now):
            self._note_links()
        if self.journal.is_dirty and not self._may_write_later():
            self.journal.flush(self._write())
        if self._txn is not None:
            self._txn.commit()
            self._txn = self.journal.open_txn = None
            self._durable_term = engine.term
        return self._speak()

    def _take_in(self, given: Input) -> None:
        match given:
            case PeerMessage(peer, frame):
                messages = decode_frame(frame)
                if messages is None:
                    self.guard.dropped["malformed_frame"] += 1
                    return
                for message in messages:
                    self.guard.receive(peer, message, self._now)
                    if isinstance(message, Checkpoint) and peer in self.engine.peers:
                        self._comparison.report(peer, message)
            case Propose(token, command):
                self._propose(token, command)
            case ReadIndex(token):
                if error := self.reads.ask(token):
                    self._resolved.append(Resolved(token, 0, None, error))
            case ProposeChange(token, change):
                self._propose_change(token, change)
            case LinkUp(peer):
                if peer != self.node_id:
                    self.engine.connect(peer)
                    self._note_links()
                    if peer in self.engine.voting_peers:
                        self.election.link_up(self._now)
            case LinkDown(peer, closed_by_peer):
                if peer != self.node_id:
                    self.engine.disconnect(peer)
                    self._note_links()
                    self.election.link_down(peer, closed_by_peer=closed_by_peer, now=self._now)
            case TransferLeadership():
                self._start_transfer()
            case InstallSnapshot(header, open_filled):
                self._install(header, open_filled)
            case HoldLog(index):
                self._log_hold.renew(index, self._now)
            case Quarantine(reason):
                self.quarantine_reason = self.quarantine_reason or reason

    def _note_links(self) -> None:
        self._connected = tuple(peer for peer in self.engine.peers if self.engine.is_connected(peer))

    def _propose(self, token: int, command: bytes) -> None:
        error = None
        if len(command) > COMMAND_BYTES_MAX:
            error = "too_large"
        elif self.is_quarantined:
            error = "quarantined"
        elif not self.engine.is_leader or self._transfer_until is not None:
            error = "not_leader"
        if error is None:
            self._proposals.append((token, command))
        else:
            self._resolved.append(Resolved(token, 0, None, error))

    def _propose_change(self, token: int, change: Change) -> None:
        journal = self.journal
        before = journal.configuration
        verdict = self.members.propose(change) if self._transfer_until is None else None
        if verdict is None:
            if self.engine.is_leader:
                self._start_transfer()  # it is not to vote any more: another one makes the change
            self._resolved.append(Resolved(token, 0, None, "not_leader"))
        elif isinstance(verdict, Refusal):
            self._resolved.append(Resolved(token, 0, verdict, "refused"))
        elif journal.configuration is not before:
            self.on_appended(journal.last_index, token)
        elif journal.is_changing:
            self._resolved.append(Resolved(token, 0, None, "discarded"))  # as it is to be, but not committed
        else:
            self._resolved.append(Resolved(token, journal.applied_configuration[0], verdict, None))

    def _write(self) -> WriteTransaction:
        if self._txn is None:
            self._txn = self.journal.open_txn = self._store.begin_write()
        return self._txn

    def _may_write_later(self) -> bool:
        """See `Journal.may_wait`; there must be followers to wait for, and the term must be durable. What is agreed is
        applied, and so written, but in quarantine: told before it is written, it may rest on a copy that is lost."""
        engine = self.engine
        is_leading = engine.is_leader and bool(engine.voting_peers) and engine.term == self._durable_term
        is_owing = engine.commit_index > self.journal.flushed_index
        return is_leading and not is_owing and self._txn is None and self.journal.may_wait(self._now)

    def _speak_early(self, speak_early: SpeakEarly | None) -> None:
        if speak_early is None or not self._may_speak_early():
            return
        early = [said for said in self._outbox if isinstance(said[1], EARLY)]
        self._outbox = [said for said in self._outbox if not isinstance(said[1], EARLY)]
        if early:
            speak_early(pack_frames(early, self._settings.batch_bytes))

    def _may_speak_early(self) -> bool:
        """A sole voter may not: what it tells learners is committed by its own disk alone."""
        engine = self.engine
        return engine.is_leader and engine.term == self._durable_term and not engine.is_sole_voter

    def _speak(self) -> Output:
        messages, self._outbox = pack_frames(self._outbox, self._settings.batch_bytes), []
        resolved, self._resolved = self._resolved, []
        events, self._events = self._events, []
        return Output(messages, resolved, events, self.status, self._next_deadline())

    def _next_deadline(self) -> float:
        engine = self.engine
        if engine.commit_index > engine.applied_index and not self.is_quarantined:
            return self._now
        if engine.is_leader:
            deadline = engine.send_deadline() if engine.peers else self._now + 3600.0
            deadline = min(deadline, self.journal.write_due_at or deadline)
            if self._tell_commit_at is not None:
                deadline = min(deadline, self._tell_commit_at)
            if self._transfer_until is not None:
                deadline = min(deadline, self._now + self._settings.heartbeat_s / 4, self._transfer_until)
        else:
            deadline = engine.election_deadline
        return max(deadline, self._now) + 1e-4  # the engine acts when its deadline is past, not when it is reached

    def _tell_commit(self) -> None:
        """The engine tells followers only with the next entries or heartbeat. A heartbeat is too late; so it is said
        after `commit_notice_s`, unless entries have said it by then: under load they do, and a follower applies and
        stores in one write what would otherwise be two."""
        engine = self.engine
        untold = [
            (peer, index)
            for peer in (engine.peers if engine.is_leader else ())
            if engine.is_connected(peer)
            and (index := min(engine.commit_index, engine.match_index(peer))) > engine.flows[peer].commit_told
            and index >= self.journal.first_index
        ]
        if not untold:
            self._tell_commit_at = None
            return
        if self._tell_commit_at is None:
            self._tell_commit_at = self._now + self._settings.commit_notice_s
        if self._now >= self._tell_commit_at:
            self._tell_commit_at = None
            for peer, index in untold:
                engine.flows[peer].commit_told = index
                self.on_send(peer, Commit(engine.term, index, self.journal.term_at(index)))

    # -- handing over --

    def _start_transfer(self) -> None:
        if self.engine.is_leader and self.engine.voting_peers and self._transfer_until is None:
            self._transfer_until = self._now + self._settings.election_max_s
            self._has_asked_successor = False

    def _transfer(self) -> None:
        """While it lasts no proposal is taken, so that the successor can catch up."""
        if self._transfer_until is None:
            return
        if not self.engine.is_leader or self._now >= self._transfer_until:
            self._transfer_until = None
        elif not self._has_asked_successor:
            self._has_asked_successor = self.engine.start_transfer()

    # -- what the engine calls --

    def on_send(self, peer: NodeId, message: AnyMessage) -> None:
        if self.quarantine_reason and isinstance(message, NextIndex):
            message = msgspec.structs.replace(message, is_withdrawn=True)
        self._outbox.append((peer, message))

    def on_apply(self, entries: list[Entry]) -> None:
        self.journal.set_applied(entries[-1][1])
        machine, waiting, resolved = self._machine, self._waiting, self._resolved
        txn: WriteTransaction | None = None
        for raw, index, _ in entries:
            if raw[:1] != COMMAND:
                if raw[:1] == CONFIGURATION:
                    self._apply_configuration(index)
                continue
            txn = txn or self._write()
            command = raw[1:]
            try:
                answer, events = machine.apply(txn, index, command)
            except (StorageError, UpgradeRequired):
                raise
            except Exception as error:
                raise ApplyFailed(index, error) from error
            if events:
                self._events.extend(events)
            digest = machine.checkpoint(txn, index, command)
            if digest is not None:
                self._record_checkpoint(index, digest)
            token = waiting.pop(index, None)
            if token is not None:
                resolved.append(Resolved(token, index, answer, None))

    def _apply_configuration(self, index: int) -> None:
        self.journal.apply_configuration(index, self._write())
        token = self._waiting.pop(index, None)
        if token is not None:
            self._resolved.append(Resolved(token, index, self.journal.applied_configuration[1], None))

    def take_proposals(self) -> list[tuple[int, bytes]]:
        proposals, self._proposals = self._proposals, []
        if proposals and not self.engine.is_leader:
            self._resolved.extend(Resolved(token, 0, None, "not_leader") for token, _ in proposals)
            return []
        return proposals

    def on_appended(self, index: int, token: int) -> None:
        self._waiting[index] = token

    def on_role(self, old: Role, new: Role) -> None:
        if old is Role.LEADER:
            waiting, self._waiting = self._waiting, {}
            self._resolved.extend(Resolved(token, 0, None, "discarded") for token in waiting.values())
            self._resolved.extend(Resolved(token, 0, None, "not_leader") for token in self.reads.rounds.abandon())

    # -- comparing tables with peers --

    def _record_checkpoint(self, index: int, digest: bytes) -> None:
        if self._comparison.record(index, digest, self._now):
            for peer in self.engine.peers:
                if self.engine.is_connected(peer):
                    self.on_send(peer, Checkpoint(self.engine.term, index, digest))

    def _compare_checkpoints(self) -> None:
        if self._comparison.count_against(self.engine.applied_index, self.engine.voting_peers) >= self.engine.majority:
            self.quarantine_reason = self.quarantine_reason or "a majority of the voters has other tables"
        if self.is_quarantined:
            self._start_transfer()

    # -- snapshots --

    def _install(self, header: Header, open_filled: Callable[[], Store]) -> None:
        """Row 16: never back. A replica in quarantine may take one of the index where it stopped; also while it leads,
        as a sole voter does: to its log it is a restart."""
        applied = self.engine.applied_index
        assert self._txn is None, "it is installed before anything is written"
        if header.index < applied + (not self.is_quarantined):
            self.guard.dropped["useless_snapshot"] += 1
            return
        try:
            with closing(open_filled()) as filled:
                install(self._store, filled, header, self._machine.tables)
        except StoreBusy:
            self.guard.dropped["untimely_snapshot"] += 1
        else:
            raise SnapshotInstalled(header.index)
