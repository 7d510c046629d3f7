"""A replica's voters and learners: which changes it appends while it leads, and how far each of them is."""

from collections.abc import Sequence

from consensus.engine import Engine
from consensus.journal import read_configuration, write_configuration
from consensus.membership import Change, Configuration, Refusal, Standing, encode_configuration, judge
from consensus.messages import CONFIGURATION
from storage.ids import NodeId
from storage.transactions import Store


def begin(store: Store, founders: Sequence[NodeId]) -> None:
    """Records the first configuration at the first start: that of the founding. A newcomer's is empty."""
    with store.read() as txn:
        stored = read_configuration(txn)
    with store.write() as txn:
        write_configuration(txn, *(stored or (0, Configuration(tuple(sorted(founders))))))


class Members:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.heard: tuple[NodeId, ...] = ()
        """Of a leader: members that answer."""
        self.caught_up: tuple[NodeId, ...] = ()
        """Of them, those that hold what this leader held a moment ago."""
        self._looked: tuple[Configuration, float, bool] = (Configuration(), float("-inf"), False)

    def look(self, now: float) -> bool:
        """Once a heartbeat, and when something has changed. Whether the configuration has."""
        engine, configuration = self._engine, self._engine.journal.configuration
        known, at, was_leader = self._looked
        is_other = known is not configuration
        if is_other or was_leader != engine.is_leader or now - at >= engine.settings.heartbeat_s:
            self._looked = (configuration, now, engine.is_leader)
            asked = engine.peers if engine.is_leader else []
            self.heard = tuple([peer for peer in asked if engine.is_heard(peer)])
            self.caught_up = tuple([peer for peer in asked if engine.is_caught_up(peer)])
        return is_other

    def propose(self, change: Change) -> Configuration | Refusal | None:
        """The new configuration, in the log; the present one, if that is how it is already; or why not. None: this
        node does not lead, or should not, because it is to vote no more."""
        engine, journal = self._engine, self._engine.journal
        if not engine.is_leader:
            return None
        verdict = judge(journal.configuration, change, self._standing())
        if isinstance(verdict, Refusal) or verdict == journal.configuration:
            return verdict
        if engine.node_id not in verdict.voters:
            return None
        journal.add(CONFIGURATION + encode_configuration(verdict), journal.last_index + 1, engine.term)
        return verdict

    def _standing(self) -> Standing:
        """At this moment, not at the last look."""
        engine = self._engine
        caught_up = frozenset(peer for peer in engine.peers if engine.is_caught_up(peer))
        return Standing(engine.node_id, caught_up, self._is_changing(), not engine.has_committed_in_term)

    def _is_changing(self) -> bool:
        """Row 9: the engine itself never notices."""
        return self._engine.journal.is_changing
