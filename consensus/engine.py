"""PySyncObj (0.3.17) without its threads, sockets, pickles, dumps and clock: the only module that touches it.

The engine decides elections, replication and commitment. Here it is bound to its surroundings: time and dice come from
whoever steps it, the log and hard state from `consensus.journal`, what it says goes to a list, proposals and applied
entries pass through `EngineOwner`. Its own sender of entries is replaced, because that one pickles large entries and
sends without bound to a peer that lags. Names that begin with `_SyncObj` are its private members; a test checks them
against the installed version.
"""

import logging
import random
import zlib
from enum import IntEnum
from typing import Any, Protocol

import pysyncobj.syncobj as engine_module
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from consensus.flow import Flow
from consensus.journal import Journal
from consensus.limits import RaftSettings
from consensus.messages import (
    COMMAND,
    AnyMessage,
    AppendEntries,
    Entry,
    NextIndex,
    RequestVote,
    TimeoutNow,
    Vote,
)
from consensus.surroundings import Dice, NoPoller, NoSnapshots, surroundings
from storage.ids import NodeId


class Role(IntEnum):
    """As the engine numbers them."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2


_ROLES = tuple(Role)


class EngineOwner(Protocol):
    """What the engine needs from the replica around it. All are called within `Engine.tick` or `Engine.hand_over`."""

    def on_send(self, peer: NodeId, message: AnyMessage) -> None: ...

    def on_apply(self, entries: list[Entry]) -> None: ...

    def take_proposals(self) -> list[tuple[int, bytes]]: ...

    def on_appended(self, index: int, token: int) -> None: ...

    def on_role(self, old: Role, new: Role) -> None: ...

    @property
    def is_quarantined(self) -> bool:
        """Nothing is applied then."""


class _Voter(Node):  # type: ignore[misc]  # the library has no types
    """A node whose hash does not depend on PYTHONHASHSEED: the engine iterates over sets of them, and a simulation must
    be the same twice."""

    def __init__(self, node_id: NodeId) -> None:
        super().__init__(node_id)
        self._hash = zlib.crc32(node_id.encode())

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Voter) and self.id == other.id)


class _Nodes(dict[NodeId, _Voter]):
    """Everybody ever heard of, made when first asked for: authenticated peers, so there are few."""

    def __missing__(self, node_id: NodeId) -> _Voter:
        node = self[node_id] = _Voter(node_id)
        return node


engine_module.monotonicTime = lambda: surroundings.now
engine_module.random = Dice
engine_module.createPoller = lambda kind: NoPoller()
engine_module.createJournal = lambda journal: journal
logging.getLogger("pysyncobj").addHandler(logging.NullHandler())  # it reports what we count ourselves


class _Outbox(Transport):  # type: ignore[misc]  # the library has no types
    """Turns what the engine says into typed messages. Entries are sent by `Engine`, not through here."""

    def __init__(self) -> None:
        super().__init__(None, None, [])
        self.engine: Engine | None = None

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        engine = self.engine
        assert engine is not None
        term = engine.term
        match message["type"]:
            case "next_node_idx":
                out: AnyMessage = NextIndex(term, message["next_node_idx"], message["reset"], message["success"])
            case "request_vote":
                out = RequestVote(message["term"], message["last_log_index"], message["last_log_term"])
            case "response_vote":
                out = Vote(message["term"])
            case "timeout_now":
                out = TimeoutNow(message["term"])
            case other:
                raise AssertionError(f"the engine said something unexpected: {other}")
        engine.owner.on_send(node.id, out)
        return True


class Engine(SyncObj):  # type: ignore[misc]  # the library has no types
    """One Raft voter or learner. Every method needs `enter` first in the same step.

    Who is which follows the journal's configuration. A leader is a voter in its own configuration always: it never
    appends one in which it is not. Whoever is no voter never stands for election, but grants votes like anybody: it
    may be a voter already, and not know.
    """

    _SyncObj__raftCommitIndex: int
    _SyncObj__raftLeader: Any
    _SyncObj__raftState: int

    def __init__(self, node_id: NodeId, journal: Journal, settings: RaftSettings, owner: EngineOwner) -> None:
        self.node_id = node_id
        self.owner = owner
        self.journal = journal
        self.settings = settings
        self.nodes = _Nodes()
        self.is_voter = False
        self.majority = 1
        self.peers: list[NodeId] = []
        """Voters and learners but this node: those who get the log."""
        self.voting_peers: list[NodeId] = []
        self.flows: dict[NodeId, Flow] = {}
        """To each of `peers`."""
        self._learners: list[NodeId] = []
        self._beat_learners_at = 0.0
        self.withdrawn: set[NodeId] = set()
        """Peers whose tables are not to be trusted, as they said themselves."""
        self._marks = ((surroundings.now, 0),) * 2
        """Of a leader: two times, about an election timeout apart, and where its log ended then."""
        self._outbox = _Outbox()
        super().__init__(
            self.nodes[node_id],
            [],
            SyncObjConf(
                autoTick=False,
                journalFile=journal,
                raftMinTimeout=settings.election_min_s,
                raftMaxTimeout=settings.election_max_s,
                appendEntriesPeriod=settings.heartbeat_s,
                leaderFallbackTimeout=settings.leader_fallback_s,
                connectionTimeout=settings.election_max_s * 2,
                dynamicMembershipChange=False,
            ),
            transport=self._outbox,
        )
        self._outbox.engine = self
        self._SyncObj__serializer = NoSnapshots()
        self._SyncObj__raftLastApplied = max(journal.applied_index, 1)
        journal.on_configuration = self._reconfigure
        self._reconfigure()

    @staticmethod
    def enter(now: float, dice: random.Random) -> None:
        """From here on this thread's engine sees this time and these dice."""
        surroundings.now, surroundings.dice = now, dice

    # -- what it knows --

    @property
    def role(self) -> Role:
        return _ROLES[self._SyncObj__raftState]

    @property
    def is_leader(self) -> bool:
        return bool(self._SyncObj__raftState == 2)

    @property
    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def leader(self) -> NodeId | None:
        node = self._SyncObj__raftLeader
        return None if node is None else NodeId(node.id)

    def forget_leader(self) -> None:
        """And that it may have asked this node to take over."""
        self._SyncObj__raftLeader = None
        self._SyncObj__transferInProgress = False

    @property
    def commit_index(self) -> int:
        return self._SyncObj__raftCommitIndex

    def advance_commit(self, index: int) -> None:
        """The caller knows that everything up to `index` is committed and equal to what is in this log."""
        assert index <= self.journal.last_index
        if index > self._SyncObj__raftCommitIndex:
            self._SyncObj__raftCommitIndex = index
            self.journal.setRaftCommitIndex(index)

    @property
    def applied_index(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    @property
    def election_deadline(self) -> float:
        return float(self._SyncObj__raftElectionDeadline)

    @election_deadline.setter
    def election_deadline(self, at: float) -> None:
        self._SyncObj__raftElectionDeadline = at

    def send_deadline(self) -> float:
        """Of a leader: when peers are to hear of it again, or a learner may be told more."""
        due_at = [self.flows[learner].due_at for learner in self._learners if self._has_new(learner)]
        return min([float(self._SyncObj__newAppendEntriesTime), *due_at])

    @property
    def is_transfer_in_progress(self) -> bool:
        """The leader has asked this node to take over."""
        return bool(self._SyncObj__transferInProgress)

    @property
    def is_sole_voter(self) -> bool:
        return self.is_voter and not self.voting_peers

    @property
    def has_committed_in_term(self) -> bool:
        """Only then a leader knows all that is committed."""
        return self.journal.term_at(self.commit_index) == self.term

    def is_heard(self, peer: NodeId) -> bool:
        """By a leader, within an election timeout; a new leader gives everyone so long."""
        heard_at = self._SyncObj__lastResponseTime.get(self.nodes[peer])
        return heard_at is not None and surroundings.now - float(heard_at) < self.settings.election_max_s

    def is_caught_up(self, peer: NodeId) -> bool:
        """It answers, and holds all that this leader held one or two election timeouts ago."""
        return self.is_heard(peer) and self.match_index(peer) >= max(self._marks[0][1], 1)

    def is_connected(self, peer: NodeId) -> bool:
        return self.nodes[peer] in self._SyncObj__connectedNodes

    def match_index(self, peer: NodeId) -> int:
        """Of a peer, while leader: what it is known to hold durably."""
        return int(self._SyncObj__raftMatchIndex.get(self.nodes[peer], 0))

    def next_index(self, peer: NodeId) -> int:
        return int(self._SyncObj__raftNextIndex.get(self.nodes[peer], 0))

    def majority_heard_at(self, now: float) -> float:
        """Of a leader: when as many peers as make a majority with it had last acknowledged something."""
        heard_at = [self._SyncObj__lastResponseTime[self.nodes[peer]] for peer in self.voting_peers]
        return float(sorted(heard_at, reverse=True)[self.majority - 2]) if self.majority > 1 else now

    # -- what happens to it --

    def connect(self, peer: NodeId) -> None:
        """Of anybody in the mesh: it may become a voter."""
        if peer in self.flows:
            self.flows[peer].reset()
        self._SyncObj__onNodeConnected(self.nodes[peer])
        if self.is_leader and peer in self.peers:
            # What was on its way may be lost. Start from what it is known to hold, or from the end if nothing is known,
            # and say at once who leads.
            held = self.match_index(peer) or self.journal.last_index
            self._SyncObj__raftNextIndex[self.nodes[peer]] = held + 1
            self._speak_soon()

    def disconnect(self, peer: NodeId) -> None:
        if peer in self.flows:
            self.flows[peer].reset()
        self._SyncObj__onNodeDisconnected(self.nodes[peer])

    def hand_over(self, peer: NodeId, message: dict[str, Any]) -> None:
        """To the engine's own message handler, in its own format."""
        self._SyncObj__onMessageReceived(self.nodes[peer], message)

    def lead(self) -> None:
        """The part of a leader's tick that followers wait for: what is agreed now, and new entries. `tick` does the
        rest, applying among it, while they work."""
        self._agree(self.journal.flushed_index)
        self._checkCommandsToApply()
        self._send_new()

    def tick(self) -> None:
        """What it says may rest on entries that are written only after it: it must wait for the write."""
        if self.is_leader and self.peers:
            self._agree(self.journal.last_index)
        self.doTick(0.0)
        self._send_new()

    def _agree(self, own_index: int) -> None:
        """The commit rule, as the engine has it, without its walk over every entry: a majority holds it, this replica
        up to `own_index`, and it is of this term (Raft, section 5.4.2)."""
        held = sorted([own_index, *[self.match_index(peer) for peer in self.voting_peers]], reverse=True)
        index = held[self.majority - 1]
        if index > self.commit_index and self.journal.term_at(index) == self.term:
            self.advance_commit(index)

    def _send_new(self) -> None:
        if self.is_leader and any(self._is_ready(peer) for peer in self.peers):
            self._SyncObj__sendAppendEntries()

    def _is_ready(self, peer: NodeId) -> bool:
        return self._has_new(peer) and self.flows[peer].due_at <= surroundings.now

    def _has_new(self, peer: NodeId) -> bool:
        """Entries that this peer lacks and has room for."""
        is_lacking = self.journal.first_index < self.next_index(peer) <= self._last_for(peer)
        return is_lacking and self._has_room(peer)

    def _last_for(self, peer: NodeId) -> int:
        """A learner is told what is committed, so that it stores and applies it in one write."""
        return self.commit_index if peer in self._learners else self.journal.last_index

    def _speak_soon(self) -> None:
        self._SyncObj__newAppendEntriesTime = 0.0
        self._beat_learners_at = 0.0

    def adopt_term(self, term: int) -> None:
        """Someone is in a higher term: this replica follows nobody until it hears from that term's leader."""
        assert term > self.term
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__transferInProgress = False
        self._SyncObj__raftLeader = None
        self._SyncObj__setState(int(Role.FOLLOWER))

    def start_transfer(self) -> bool:
        """Ask the most caught-up peer to take over; False while it is not quite caught up or there is none."""
        outcome: list[int] = []
        self.transferLeadership(callback=lambda result, error: outcome.append(error))
        return outcome == [0]

    def acknowledge(self, peer: NodeId, message: NextIndex) -> None:
        """Hand over an acknowledgement of this term, and make room in the peer's window."""
        node, flow = self.nodes[peer], self.flows[peer]
        if message.is_reset:
            flow.reset()
        flow.note_answer(message.next_index)
        sent = self._SyncObj__raftNextIndex[node]
        self.hand_over(
            peer,
            {
                "type": "next_node_idx",
                "next_node_idx": message.next_index,
                "reset": message.is_reset,
                "success": message.is_success,
            },
        )
        if not message.is_reset:
            # The engine goes back to what is acknowledged, and would send again what is on its way.
            self._SyncObj__raftNextIndex[node] = max(sent, self._SyncObj__raftNextIndex[node])

    def _has_room(self, peer: NodeId) -> bool:
        return self.is_connected(peer) and self.flows[peer].has_room

    def _reconfigure(self) -> None:
        """The journal's configuration has changed: who gets the log, and who counts."""
        configuration, own, nodes = self.journal.configuration, self.node_id, self.nodes
        self.is_voter = own in configuration.voters
        self.majority = configuration.majority
        self.voting_peers = [voter for voter in configuration.voters if voter != own]
        self.peers = [peer for peer in configuration.members if peer != own]
        self._SyncObj__otherNodes = {nodes[peer] for peer in self.voting_peers}
        self._learners = [learner for learner in configuration.learners if learner != own]
        self._SyncObj__readonlyNodes = {nodes[learner] for learner in self._learners}
        self.flows = {peer: flow for peer, flow in self.flows.items() if peer in self.peers}
        for peer in self.peers:
            if peer not in self.flows:
                self.flows[peer] = Flow(self.settings)
                if self.is_leader:
                    node = nodes[peer]
                    self._SyncObj__raftNextIndex[node] = self.journal.last_index + 1
                    self._SyncObj__raftMatchIndex[node], self._SyncObj__lastResponseTime[node] = 0, surroundings.now
                    self._speak_soon()

    def random_timeout(self, low: float, high: float) -> float:
        return low + (high - low) * surroundings.dice.random()

    # -- overrides of the engine's private members --

    def _SyncObj__sendAppendEntries(self) -> None:
        """To every connected peer: the entries it lacks, as far as its window allows; at least one message, which also
        is the heartbeat; learners at their own pace. Nothing is lost by stopping early: `next` only moves past what was
        sent."""
        self._SyncObj__newAppendEntriesTime = surroundings.now + self.settings.heartbeat_s
        is_beat = surroundings.now >= self._beat_learners_at
        if is_beat:
            self._beat_learners_at = surroundings.now + self.settings.heartbeat_s
        if surroundings.now - self._marks[1][0] >= self.settings.election_max_s:
            self._marks = (self._marks[1], (surroundings.now, self.journal.last_index))
        commit, journal = self.commit_index, self.journal
        batches: dict[tuple[int, int], tuple[AppendEntries, int]] = {}
        for peer in self.peers:
            if not self.is_connected(peer):
                continue
            node, flow, last_index = self.nodes[peer], self.flows[peer], self._last_for(peer)
            if peer in self._learners:
                if not is_beat and not self._is_ready(peer):
                    continue
                flow.take_turn(surroundings.now)
            start = self._SyncObj__raftNextIndex[node]
            if start <= journal.first_index:  # it needs a snapshot, and finds out by this
                self.owner.on_send(peer, self._message(journal.first_index + 1, []))
                continue
            has_sent = False
            while not has_sent or (start <= last_index and flow.has_room):
                if start <= last_index and flow.has_room:
                    if (start, last_index) not in batches:
                        batches[start, last_index] = self._batch(start, last_index)
                    message, size = batches[start, last_index]
                    flow.note_sent(message.entries[-1][1], size)
                else:
                    message = self._message(start, [])
                self.owner.on_send(peer, message)
                start += len(message.entries)
                flow.commit_told = max(flow.commit_told, min(commit, start - 1))
                has_sent = True
            self._SyncObj__raftNextIndex[node] = start

    def _batch(self, start: int, last_index: int) -> tuple[AppendEntries, int]:
        """Entries from `start`, and about how many bytes they are on their way."""
        entries = self.journal.entries(
            start,
            last_index + 1,
            bytes_max=self.settings.batch_bytes,
            count_max=self.settings.batch_entries,
        )
        size = sum([len(entry[0]) for entry in entries]) + 32 * len(entries)
        return self._message(start, entries), size

    def _message(self, start: int, entries: list[Entry]) -> AppendEntries:
        journal = self.journal
        return AppendEntries(
            self.term, self.commit_index, start - 1, journal.term_at(start - 1), entries, journal.first_index
        )

    def _checkCommandsToApply(self) -> None:
        """The engine would forward them when it is not the leader; ours are then answered, not forwarded."""
        proposals = self.owner.take_proposals()
        if proposals:
            term, add, on_appended = self.term, self.journal.add, self.owner.on_appended
            for index, (token, command) in enumerate(proposals, self.journal.last_index + 1):
                add(COMMAND + command, index, term)
                on_appended(index, token)

    def _SyncObj__applyLogEntries(self) -> bool:
        """What is committed, as much as one slice of the log holds, in one call. False: nothing to send for it."""
        first, journal = self.applied_index + 1, self.journal
        if first <= self.commit_index and not self.owner.is_quarantined:
            entries = journal.entries(
                first,
                self.commit_index + 1,
                bytes_max=self.settings.slice_bytes_max,
                count_max=self.settings.slice_entries_max,
            )
            self.owner.on_apply(entries)
            self._SyncObj__raftLastApplied = entries[-1][1]
        return False

    def _SyncObj__parseChangeClusterRequest(self, command: bytes) -> None:
        """Membership never travels as a pickle in the log."""

    def _SyncObj__tryLogCompaction(self) -> None:
        """There are no dumps."""

    def _SyncObj__setState(self, state: int) -> None:
        old, new = self.role, Role(state)
        self._SyncObj__raftState = state
        if old is new:
            return
        if new is Role.LEADER:
            self._marks = ((surroundings.now, self.journal.last_index),) * 2
            self._speak_soon()
            for flow in self.flows.values():
                flow.reset()
        elif old is Role.LEADER:
            # A leader does not move its election deadline, so it lies in the past.
            self._SyncObj__raftElectionDeadline = surroundings.now + self._SyncObj__generateRaftTimeout()
        self.owner.on_role(old, new)
