"""Decides what a read may rely on: that the leader still leads, and how fresh this replica is. It writes nothing.

A leader may have been replaced without knowing it. So before it says up to which index a linearizable read must see, it
asks everybody in a round of probes whether it still leads (ReadIndex: Ongaro, Consensus: Bridging Theory and Practice,
section 6.4). All reads that wait share a round.

Rules, each known to be necessary by a planted fault:
- no round begins before an entry of the leader's own term is committed: until then the leader may not know everything
  that its predecessors have acknowledged;
- a round begins after its reads were asked, and only a proof of this round or a later one counts for it;
- only voters prove, and only a majority of them is enough.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from consensus.engine import Engine
from consensus.limits import READS_WAITING_MAX
from consensus.messages import ReadProbe, ReadProof
from storage.ids import NodeId


@dataclass(frozen=True, slots=True)
class _Round:
    number: int
    index: int
    """What was committed when it began."""
    tokens: list[int]


class ReadRounds:
    """Pure. A round that is not proved stays open until a later one is, or until leadership is lost."""

    def __init__(self) -> None:
        self._asked: list[int] = []
        self._rounds: deque[_Round] = deque()
        self._number = 0
        self._proved: dict[NodeId, int] = {}
        """Voter -> the latest round that it has proved."""
        self.waiting_count = 0

    @property
    def has_open_round(self) -> bool:
        return bool(self._rounds)

    @property
    def number(self) -> int:
        """Of the latest round: what a probe carries."""
        return self._number

    def ask(self, token: int) -> None:
        self._asked.append(token)
        self.waiting_count += 1

    def begin(self, commit_index: int) -> bool:
        """All that was asked becomes a round, to be probed for now; False if nothing was asked. Call it only once an
        entry of the leader's own term is committed."""
        if not self._asked:
            return False
        self._number += 1
        self._rounds.append(_Round(self._number, commit_index, self._asked))
        self._asked = []
        return True

    def prove(self, peer: NodeId, number: int) -> None:
        """`peer` was in the leader's term after the round had begun."""
        if self._proved.get(peer, 0) < number <= self._number:
            self._proved[peer] = number

    def take_confirmed(self, others: Collection[NodeId], majority: int) -> list[tuple[int, int]]:
        """Tokens, and the index that each must see, of the rounds that a majority of the voters has proved: `others`
        are the voters beside the leader, which counts as one."""
        confirmed: list[tuple[int, int]] = []
        while self._rounds and self._count(others, self._rounds[0].number) >= majority:
            done = self._rounds.popleft()
            confirmed += [(token, done.index) for token in done.tokens]
        self.waiting_count -= len(confirmed)
        return confirmed

    def _count(self, others: Collection[NodeId], number: int) -> int:
        return 1 + sum(self._proved.get(voter, 0) >= number for voter in others)

    def tokens(self) -> list[int]:
        """Of those that wait."""
        return [*(token for waiting in self._rounds for token in waiting.tokens), *self._asked]

    def abandon(self) -> list[int]:
        """Leadership is lost: the tokens that will not be confirmed."""
        tokens = self.tokens()
        self._asked = []
        self._rounds.clear()
        self._proved.clear()
        self.waiting_count = 0
        return tokens


class Reads:
    """The reads of one replica, for as long as it lives. Like the engine, it is used within a step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rounds = ReadRounds()
        self.fresh_at = float("-inf")
        """When this replica was last known to have applied all that was committed. A follower: when it last heard a
        leader that had committed in its own term, and had applied, by the end of that step or a later one, all that the
        leader then named as committed. A leader: when a majority, itself among it, had last acknowledged something. How
        long a message was on its way is not in it, nor that a leader which is cut off goes on for
        `leader_fallback_s`."""
        self._told: tuple[int, float] | None = None
        self._probed_at = float("-inf")

    def ask(self, token: int) -> str | None:
        """Why not, or None: the answer comes out of a later `step`."""
        if not self.engine.is_leader:
            return "not_leader"
        if self.rounds.waiting_count >= READS_WAITING_MAX:
            return "overloaded"
        self.rounds.ask(token)
        return None

    def hear(self, commit_index: int, now: float) -> None:
        """The leader of the term has named what is committed."""
        self._told = (commit_index, now)

    def new_term(self) -> None:
        """What the leader of an older one named proves nothing any more."""
        self._told = None

    def on_probe(self, peer: NodeId, message: ReadProbe) -> None:
        """From the leader of this term. Needs no disk: it says only that no higher term is known here."""
        self.engine.owner.on_send(peer, ReadProof(self.engine.term, message.number))

    def on_proof(self, peer: NodeId, message: ReadProof) -> None:
        """Of this term, to its leader."""
        self.rounds.prove(peer, message.number)

    def step(self, now: float) -> list[tuple[int, int]]:
        """After the tick: what may be answered. Probes go out with whatever else the step has to say; a round whose
        probes or proofs were lost is probed again after a heartbeat."""
        engine = self.engine
        if not engine.is_leader:
            if self._told is not None and self._has_caught_up(self._told[0]):
                self.fresh_at = self._told[1]
            return []
        if not self._is_of_this_term(engine.commit_index):
            return []
        if engine.applied_index == engine.commit_index:
            self.fresh_at = max(self.fresh_at, engine.majority_heard_at(now))
        is_new = self.rounds.begin(engine.commit_index)
        if not self.rounds.has_open_round:
            return []
        if is_new or now - self._probed_at >= engine.settings.heartbeat_s:
            self._probed_at = now
            probe = ReadProbe(engine.term, self.rounds.number)
            for peer in engine.peers:
                if engine.is_connected(peer):
                    engine.owner.on_send(peer, probe)
        return self.rounds.take_confirmed(engine.voting_peers, engine.majority)

    def _has_caught_up(self, index: int) -> bool:
        return index <= self.engine.applied_index and self._is_of_this_term(index)

    def _is_of_this_term(self, index: int) -> bool:
        """Before an entry of its own term is committed, a leader may not know all that is."""
        journal = self.engine.journal
        return journal.first_index <= index and journal.term_at(index) == self.engine.term
