"""Executes nothing: attempts end well, fail, take longer than they may, or are never heard of again."""

from typing import TYPE_CHECKING

from consensus.state.commands import Outcome
from consensus.state.rows import Failure, Knowledge, RitualKind, RitualOffer
from node.executor.work import AttemptKey, Work
from storage.ids import SessionId

if TYPE_CHECKING:
    from tests.simulation.daemon import Daemon

RITUALS = {
    "think": RitualOffer(version="1", kind="async"),
    "compute": RitualOffer(version="1", kind="cpu"),
    "consolidate": RitualOffer(version="1", kind="async"),
}


def proof(key: AttemptKey, instance_id: str) -> str:
    """What only this attempt on this instance produces."""
    return f"{key.session_id}/{key.branch_index}/{key.attempt} by {instance_id}"


class SimulatedExecutor:
    """Hazards: `mute` (it ends and nobody hears of it), `late` (it ends after its lease), `echo` (it is told twice)."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self._seen: set[AttemptKey] = set()
        self._running: dict[AttemptKey, RitualKind] = {}

    def submit(self, work: Work) -> None:
        if work.key in self._seen:
            return
        self._seen.add(work.key)
        daemon, dice, mix = self._daemon, self._daemon.world.dice, self._daemon.world.mix
        daemon.world.checks.started(work.key, daemon.instance_id)
        self._running[work.key] = RITUALS[work.ritual].kind
        duration_s = dice.random() * work.timeout_ms / 1000 * 0.5
        if mix.happens("late", 0.1):
            duration_s = work.timeout_ms / 1000 + 5.0 + dice.random() * 5.0
        elif mix.happens("mute", 0.1):
            return
        daemon.world.clock.loop.call_later(duration_s, self._end, work, int(duration_s * 1000))

    def cancel(self, session_id: SessionId, branch_index: int, attempt: int) -> bool:
        """Late ones do not obey."""
        return self._running.pop(AttemptKey(session_id, branch_index, attempt), None) is not None

    def has_room(self, kind: RitualKind) -> bool:
        slots = self._daemon.world.slots * (2 if kind == "async" else 1)
        return sum(running == kind for running in self._running.values()) < slots

    def running(self) -> list[AttemptKey]:
        return list(self._running)

    def _end(self, work: Work, duration_ms: int) -> None:
        daemon, dice = self._daemon, self._daemon.world.dice
        is_cancelled = self._running.pop(work.key, None) is None
        if is_cancelled and duration_ms <= work.timeout_ms:
            return
        outcome = Outcome(
            session_id=work.session_id,
            branch_index=work.branch_index,
            attempt=work.attempt,
            node_id=daemon.node_id,
            duration_ms=duration_ms,
            ritual_version="1",
            knowledge=Knowledge(patterns=[f"p{dice.randrange(9)}"], result=proof(work.key, daemon.instance_id)),
        )
        fate = dice.random()
        if fate < 0.1:
            failure = Failure(code="ritual_failed", message="planned")
            outcome = Outcome(
                session_id=work.session_id,
                branch_index=work.branch_index,
                attempt=work.attempt,
                node_id=daemon.node_id,
                duration_ms=duration_ms,
                ritual_version="1",
                failure=failure,
                is_lost=fate < 0.03,
            )
        daemon.on_outcome(outcome)
        if daemon.world.mix.happens("echo", 0.1):
            daemon.world.clock.loop.call_later(dice.random() * 3, daemon.on_outcome, outcome)
