"""What makes PySyncObj safe: every message passes through here before the engine sees it, or is answered here.

The rows of section 4 of the design are the methods below, one each, so that a test can take one away and show that the
simulation notices. Nothing a peer sends makes this raise: what is malformed, impossible or from a stranger is dropped
and counted.

Rules kept here, all of them known to be necessary by a planted fault:
  1  a follower cuts its log only on a conflict, never below what is committed
  2  a rejection goes back to the first index of the conflicting term
  3  one rejection per probe
  4  acknowledgements of another term are dropped; every higher term is adopted, from any message
  5  one vote per voter and term, from voters only
  10 elections: see `consensus.election`
  14 a message says what is committed only together with the term of the entry it names
"""

from collections import Counter

from consensus.election import Election
from consensus.engine import Engine, Role
from consensus.limits import TERM_JUMP_MAX
from consensus.messages import (
    ANSWERS,
    AnyMessage,
    AppendEntries,
    Checkpoint,
    Commit,
    HigherTerm,
    NextIndex,
    PreVote,
    ReadProbe,
    ReadProof,
    Removed,
    RequestPreVote,
    RequestVote,
    TimeoutNow,
    Vote,
    are_entries_wellformed,
)
from consensus.reads import Reads
from storage.ids import NodeId


class Guard:
    def __init__(self, engine: Engine, election: Election, reads: Reads) -> None:
        self.engine = engine
        self.election = election
        self.reads = reads
        self.dropped: Counter[str] = Counter()
        """Messages that were not handed on, by reason."""
        self._rejection: tuple[NodeId, int, int, float] | None = None
        self._votes: tuple[int, set[NodeId]] = (0, set())
        self.needs_snapshot = False
        """The leader's log no longer holds what this replica lacks."""
        self.is_told_removed = False
        """A member said that this node was removed, and nobody has sent it entries since."""

    def receive(self, peer: NodeId, message: AnyMessage, now: float) -> None:
        """`peer` is authenticated by the link; `message` has fields of the right types and ranges."""
        if isinstance(message, Removed):
            self.is_told_removed = True
            return
        if peer not in self.engine.peers and not self._may_stranger_say(peer, message, now):
            self.dropped["stranger"] += 1
            return
        term = message.sender_term
        if term > self.engine.term:
            if term - self.engine.term > TERM_JUMP_MAX:
                self.dropped["term_jump"] += 1
                return
            self._adopt_term(term)
        elif term < self.engine.term and not isinstance(message, ANSWERS):
            # Stale, and its sender may not know: a leader of an older term hears of ours and steps down.
            self.dropped["stale_term"] += 1
            self.engine.owner.on_send(peer, HigherTerm(self.engine.term))
            return
        match message:
            case AppendEntries():
                self._on_append(peer, message, now)
            case NextIndex():
                self._on_next_index(peer, message)
            case Commit():
                self._on_commit(peer, message, now)
            case RequestVote():
                self._on_request_vote(peer, message)
            case Vote():
                self._on_vote(peer, message)
            case RequestPreVote():
                self.election.on_request(peer, message, now)
            case PreVote():
                self.election.on_grant(peer, message)
            case TimeoutNow():
                self._on_timeout_now(peer, message)
            case ReadProbe():
                self._on_read_probe(peer, message, now)
            case ReadProof():
                self._on_read_proof(peer, message)
            case HigherTerm() | Checkpoint():
                pass

    # -- members and strangers --

    def _may_stranger_say(self, peer: NodeId, message: AnyMessage, now: float) -> bool:
        """The configuration here may be older than that of a leader or a candidate, so they are heard. But one that was
        removed and does not know must not unseat a leader that is heard well (Ongaro, section 4.2.3): not even its term
        is believed then."""
        if isinstance(message, RequestVote | RequestPreVote):
            if peer in self.engine.journal.applied_configuration[1].removed:
                self.engine.owner.on_send(peer, Removed(self.engine.term))
                return False
            return not self.election.is_leader_fresh(now)
        return isinstance(message, AppendEntries | Commit | ReadProbe)

    # -- row 4 --

    def _adopt_term(self, term: int) -> None:
        self.engine.adopt_term(term)
        self.election.new_term()
        self.reads.new_term()

    def _is_of_this_term(self, message: NextIndex | Vote | ReadProof) -> bool:
        return message.sender_term == self.engine.term

    def _on_next_index(self, peer: NodeId, message: NextIndex) -> None:
        if not self._is_of_this_term(message):
            self.dropped["stale_acknowledgement"] += 1
            return
        if not self.engine.is_leader:
            self.dropped["not_leader"] += 1
            return
        # The leader of a term never cuts its log, so nobody holds more; the first entry ever is the same everywhere.
        if not 1 < message.next_index <= self.engine.journal.last_index + 1:
            self.dropped["impossible_index"] += 1
            return
        if message.is_withdrawn != (peer in self.engine.withdrawn):
            self.engine.withdrawn ^= {peer}
        self.engine.acknowledge(peer, message)

    # -- row 5 --

    def _counts(self, peer: NodeId, term: int) -> bool:
        """Whether this is the first vote of this voter in this term. Learners may vote; it does not count."""
        if peer not in self.engine.voting_peers:
            return False
        if self._votes[0] != term:
            self._votes = (term, set())
        if peer in self._votes[1]:
            return False
        self._votes[1].add(peer)
        return True

    def _on_vote(self, peer: NodeId, message: Vote) -> None:
        if not self._is_of_this_term(message) or self.engine.role is not Role.CANDIDATE:
            self.dropped["late_vote"] += 1
        elif not self._counts(peer, message.sender_term):
            self.dropped["uncounted_vote"] += 1
        else:
            self.engine.hand_over(peer, {"type": "response_vote", "term": message.sender_term})

    def _on_request_vote(self, peer: NodeId, message: RequestVote) -> None:
        if message.last_term > message.sender_term:
            self.dropped["impossible_term"] += 1
            return
        self.engine.hand_over(
            peer,
            {
                "type": "request_vote",
                "term": message.sender_term,
                "last_log_index": message.last_index,
                "last_log_term": message.last_term,
            },
        )

    def _on_timeout_now(self, peer: NodeId, message: TimeoutNow) -> None:
        if peer != self.engine.leader or self.engine.is_leader or not self.engine.is_voter:
            self.dropped["not_from_leader"] += 1
            return
        self.engine.hand_over(peer, {"type": "timeout_now", "term": message.sender_term})

    # -- rows 1, 2, 3, 14: what the leader says about the log --

    def _is_from_leader(self, peer: NodeId) -> bool:
        """A term has one leader. A second one is a liar, or a bug that must not spread."""
        if self.engine.is_leader or self.engine.leader not in (None, peer):
            self.dropped["second_leader"] += 1
            return False
        return True

    def _on_append(self, peer: NodeId, message: AppendEntries, now: float) -> None:
        if not are_entries_wellformed(message):
            self.dropped["malformed_entries"] += 1
            return
        if not self._is_from_leader(peer):
            return
        self.election.heard_leader(now)
        self.reads.hear(message.commit_index, now)
        journal, term = self.engine.journal, message.sender_term
        previous, previous_term, entries = message.prev_index, message.prev_term, message.entries
        # The leader is alive; this touches nothing else.
        heartbeat = {"type": "append_entries", "term": term, "commit_index": 0}
        if previous < journal.first_index:
            # What is compacted is applied, so the leader has the same.
            entries = entries[journal.first_index - previous :]
            previous, previous_term = journal.first_index, journal.term_at(journal.first_index)
        if previous > journal.last_index or journal.term_at(previous) != previous_term:
            self.engine.hand_over(peer, heartbeat)
            back_to = self._back_to(previous)
            if message.log_start < previous <= journal.last_index:
                back_to = max(back_to, message.log_start + 1)  # there it can still be compared
            self.needs_snapshot = back_to <= message.log_start
            if self._may_reject(peer, term, previous, back_to, now):
                self.engine.owner.on_send(peer, NextIndex(term, back_to, True, False))
            else:
                self.dropped["rejected_already"] += 1
            return
        self._rejection = None
        self.needs_snapshot = False
        self.is_told_removed = False
        known = self._known(entries)
        if known:
            previous, previous_term, entries = entries[known - 1][1], entries[known - 1][2], entries[known:]
        commit_index = message.commit_index
        if not entries and previous < journal.last_index:
            # All of it is here, and more: say so and leave the rest alone.
            commit_index = min(commit_index, previous)
            self.engine.hand_over(peer, heartbeat)
            self.engine.advance_commit(max(commit_index, self.engine.commit_index))
            self.engine.owner.on_send(peer, NextIndex(term, previous + 1, False, True))
            return
        if entries and previous < self.engine.commit_index:
            # A conflict with what is committed: the leader lies, or two logs have diverged. Never make it worse.
            self.dropped["conflict_below_commit"] += 1
            return
        self.engine.hand_over(
            peer,
            {
                "type": "append_entries",
                "term": term,
                "commit_index": commit_index,
                "entries": entries,
                "prevLogIdx": previous,
                "prevLogTerm": previous_term,
            },
        )

    def _known(self, entries: list[tuple[bytes, int, int]]) -> int:
        """Row 1: how many of the entries are in the log already. The same index and term is the same entry."""
        journal = self.engine.journal
        known = 0
        while (
            known < len(entries)
            and entries[known][1] <= journal.last_index
            and journal.term_at(entries[known][1]) == entries[known][2]
        ):
            known += 1
        return known

    def _back_to(self, previous: int) -> int:
        """Row 2: where the leader should continue: after the log's end, or at the start of the conflicting term."""
        journal = self.engine.journal
        if previous > journal.last_index:
            return journal.last_index + 1
        back_to, conflict = previous, journal.term_at(previous)
        floor = max(journal.first_index + 1, self.engine.commit_index + 1)
        while back_to > floor and journal.term_at(back_to - 1) == conflict:
            back_to -= 1
        return max(back_to, journal.first_index + 1)

    def _may_reject(self, peer: NodeId, term: int, previous: int, back_to: int, now: float) -> bool:
        """Row 3: of the batches that were on their way behind a rejected one, say nothing, until the probe for it
        arrives or a heartbeat has passed."""
        rejection = self._rejection
        if rejection is not None:
            who, in_term, wanted, at = rejection
            if (who, in_term) == (peer, term) and previous >= wanted and now - at < self.engine.settings.heartbeat_s:
                return False
        self._rejection = (peer, term, back_to, now)
        return True

    def _on_commit(self, peer: NodeId, message: Commit, now: float) -> None:
        if not self._is_from_leader(peer) or self.engine.leader is None:
            return
        self.election.heard_leader(now)
        if self._holds(message.index, message.index_term):
            self.engine.advance_commit(message.index)
        else:
            self.dropped["unverified_commit"] += 1

    def _holds(self, index: int, term: int) -> bool:
        """Row 14: equal index and term mean that the whole log up to there is equal."""
        journal = self.engine.journal
        return journal.first_index <= index <= journal.last_index and journal.term_at(index) == term

    # -- reads --

    def _on_read_probe(self, peer: NodeId, message: ReadProbe, now: float) -> None:
        if self._is_from_leader(peer):
            self.election.heard_leader(now)
            self.reads.on_probe(peer, message)

    def _on_read_proof(self, peer: NodeId, message: ReadProof) -> None:
        if self._is_of_this_term(message) and self.engine.is_leader:
            self.reads.on_proof(peer, message)
        else:
            self.dropped["late_proof"] += 1
