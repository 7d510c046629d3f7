"""Decides when an election may start: pre-vote, freshness of the leader, and fast failover.

The engine starts an election whenever its deadline passes, which raises the term and unseats a leader that others hear
well. Here a passed deadline only asks "would you vote for me?"; the engine may go on when a majority would. A replica
says yes if the asker's log is not behind its own and it does not itself hear a leader. So a node that comes back from a
partition disturbs nobody (Ongaro, Consensus: Bridging Theory and Practice, section 9.6).

Two who ask at the same moment would split the vote. So a replica promises itself to one asker for the length of a
heartbeat, and gives up its own candidacy for it.

A leader that hands over on purpose (`TimeoutNow`) bypasses all this; the link to a leader that its process closed makes
it not fresh at once and moves the deadline near.
"""

from consensus.engine import Engine
from consensus.messages import PreVote, RequestPreVote
from storage.ids import NodeId


class Election:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._heard_at: float | None = None
        """When this replica last heard the leader of its term; None if the link to it has closed since."""
        self._asking_term: int | None = None
        self._granted: set[NodeId] = set()
        self._promise: tuple[NodeId, float] | None = None

    def before_tick(self, now: float) -> None:
        """Take a passed deadline away from the engine and ask first."""
        engine = self.engine
        if engine.is_leader or engine.election_deadline >= now or engine.is_sole_voter:
            return
        if not engine.is_voter:
            # It learns, or waits to be told who votes: whoever leads will call.
            self._heard_at = None
            engine.forget_leader()
            engine.election_deadline = now + engine.settings.election_max_s
            return
        if not any(engine.is_connected(peer) for peer in engine.voting_peers):
            self._asking_term, self._granted = None, set()
            engine.forget_leader()  # so that the first link that comes up is reason enough
            engine.election_deadline = now + engine.settings.election_min_s
            return
        if engine.is_transfer_in_progress or self._may_elect():
            return
        engine.forget_leader()
        self._heard_at = None
        self._asking_term, self._granted = engine.term + 1, set()
        # Asking is cheap and changes nothing, so ask again soon.
        heartbeat = engine.settings.heartbeat_s
        engine.election_deadline = now + engine.random_timeout(heartbeat, 2 * heartbeat)
        for peer in engine.voting_peers:
            if engine.is_connected(peer):
                last_index, last_term = engine.journal.last_index, engine.journal.last_term
                engine.owner.on_send(peer, RequestPreVote(engine.term, engine.term + 1, last_index, last_term))

    def _may_elect(self) -> bool:
        """Whether a majority would vote for this replica in the next term."""
        return self._asking_term == self.engine.term + 1 and len(self._granted) + 1 >= self.engine.majority

    def on_started(self, now: float) -> None:
        """An election has begun. Should the vote be split, ask again after two to four heartbeats."""
        self._asking_term, self._granted = None, set()
        heartbeat = self.engine.settings.heartbeat_s
        self.engine.election_deadline = now + self.engine.random_timeout(2 * heartbeat, 4 * heartbeat)

    def on_request(self, peer: NodeId, message: RequestPreVote, now: float) -> None:
        engine = self.engine
        if message.term != message.sender_term + 1 or self.is_leader_fresh(now):
            return
        mine = (engine.journal.last_term, engine.journal.last_index)
        if (message.last_term, message.last_index) < mine:
            return
        heartbeat = engine.settings.heartbeat_s
        if self._promise is not None and self._promise[0] != peer and now - self._promise[1] < heartbeat:
            return
        if self._asking_term is not None and (message.last_term, message.last_index, peer) < (*mine, engine.node_id):
            return  # both ask: the one with the longer log, or the higher id, goes first
        self._promise = (peer, now)
        self._asking_term, self._granted = None, set()
        engine.election_deadline = max(engine.election_deadline, now + engine.random_timeout(heartbeat, 2 * heartbeat))
        engine.owner.on_send(peer, PreVote(engine.term, message.term))

    def on_grant(self, peer: NodeId, message: PreVote) -> None:
        if message.term != self._asking_term or message.term != self.engine.term + 1 or self.engine.is_leader:
            return
        if peer not in self.engine.voting_peers:
            return
        self._granted.add(peer)
        if self._may_elect():
            self.engine.election_deadline = 0.0

    def new_term(self) -> None:
        """Somebody is in a higher term: whoever led the old one leads no more."""
        self._heard_at = None
        self._asking_term, self._granted = None, set()

    def heard_leader(self, now: float) -> None:
        self._heard_at = now
        self._asking_term, self._granted = None, set()

    def is_leader_fresh(self, now: float) -> bool:
        if self.engine.is_leader:
            return True
        return self._heard_at is not None and now - self._heard_at < self.engine.settings.election_min_s

    def link_up(self, now: float) -> None:
        """With no leader known there is little to wait for."""
        engine = self.engine
        if engine.leader is None and not engine.is_leader:
            settings = engine.settings
            soon = now + engine.random_timeout(settings.failover_min_s, settings.failover_max_s)
            engine.election_deadline = min(engine.election_deadline, soon)

    def link_down(self, peer: NodeId, *, closed_by_peer: bool, now: float) -> None:
        engine = self.engine
        if peer != engine.leader or engine.is_leader:
            return
        self._heard_at = None
        if not closed_by_peer:
            return
        settings = engine.settings
        soon = now + engine.random_timeout(settings.failover_min_s, settings.failover_max_s)
        engine.election_deadline = min(engine.election_deadline, soon)
