"""Every command in every state, against the twin; and the same log under another hash seed."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from consensus.state import attempts
from consensus.state.commands import AnyCommand, Canary
from tests.property.test_state_machine import LOSSES_MAX, Pair
from tests.unit.state.model import (
    FAILED,
    NODES,
    S1,
    S2,
    A,
    Replica,
    assign,
    assignment,
    cancel,
    complete,
    drain,
    offer,
    outcome,
    register,
    requeue,
    set_status,
    spec,
    speculate,
    submit,
)


def _states() -> Iterator[tuple[str, list[AnyCommand]]]:
    start: list[AnyCommand] = [register(NODES[0]), register(NODES[1])]
    one = [*start, submit(S1, 1)]
    taken = [*one, assign(assignment(S1, 0))]
    retried = [*taken, complete(outcome(S1, 0, failure=FAILED))]
    done = [*taken, complete(outcome(S1, 0))]
    consolidating = [*done, assign(assignment(S1, 1))]
    consolidation_retried = [*consolidating, complete(outcome(S1, 1, failure=FAILED))]
    yield "empty", []
    yield "no session", start
    yield "pending", one
    yield "processing", taken
    yield "requeued", retried
    yield "processing again", [*retried, assign(assignment(S1, 0, 2, NODES[1]))]
    yield "failed", [*retried, assign(assignment(S1, 0, 2)), complete(outcome(S1, 0, 2, failure=FAILED))]
    beside = [*taken, speculate(assignment(S1, 0, 2, NODES[1]))]
    yield "two attempts", beside
    yield "the speculative one lost", [*beside, set_status(NODES[1], "dead")]
    yield "the first one failed", [*beside, complete(outcome(S1, 0, failure=FAILED))]
    strict = [*start, submit(S1, specs=[spec(attempts_max=1)]), *beside[3:]]
    yield "the other is the last chance", [*strict, complete(outcome(S1, 0, failure=FAILED))]
    yield "both failed", [*beside, *(complete(outcome(S1, 0, n + 1, NODES[n], failure=FAILED)) for n in (1, 0))]
    yield "the speculative one has won", [*beside, complete(outcome(S1, 0, 2, NODES[1]))]
    yield "the first one has won", [*beside, complete(outcome(S1, 0))]
    yield "two attempts cancelled", [*beside, cancel(S1)]
    yield "two attempts of the consolidation", [*consolidating, speculate(assignment(S1, 1, 2, NODES[1]))]
    yield "draining", [*taken, drain(NODES[0], is_leaving=True, hand_back_at_ms=9)]
    yield "suspect", [*taken, set_status(NODES[0], "suspect")]
    yield "lost", [*taken, set_status(NODES[0], "dead")]
    yield "cancelled while pending", [*one, cancel(S1)]
    yield "cancelled while processing", [*taken, cancel(S1)]
    yield "completed, consolidation queued", done
    yield "consolidation processing", consolidating
    yield "consolidation requeued", consolidation_retried
    yield "consolidation cancelled", [*consolidating, cancel(S1)]
    yield "session completed", [*consolidating, complete(outcome(S1, 1))]
    yield (
        "session failed",
        [*consolidation_retried, assign(assignment(S1, 1, 2)), complete(outcome(S1, 1, 2, failure=FAILED))],
    )


def _commands() -> Iterator[AnyCommand]:
    for number in (1, 2):
        yield register(NODES[0], number)
        for status in ("alive", "suspect", "dead", "left"):
            yield set_status(NODES[0], status, number)
        yield drain(NODES[0], number)
        yield drain(NODES[0], number, is_leaving=None)
    yield submit(S1, 1)
    yield submit(S1, 2)
    yield submit(S2, 1)
    yield submit(S2, 1, offer=offer(A))
    yield cancel(S1)
    yield Canary(node_id=A, payload=b"", at_ms=1)
    for place in (0, 1, 2):
        for attempt in (1, 2, 3):
            for node in NODES[:3]:
                yield assign(assignment(S1, place, attempt, node))
                yield speculate(assignment(S1, place, attempt, node))
                yield complete(outcome(S1, place, attempt, node))
                yield complete(outcome(S1, place, attempt, node), offered=offer(node))
                yield complete(outcome(S1, place, attempt, node, failure=FAILED))
                yield complete(outcome(S1, place, attempt, node, failure=FAILED, is_lost=True))
            for is_lost in (False, True):
                yield requeue(S1, place, attempt, is_lost=is_lost)


@pytest.mark.parametrize(("name", "before"), list(_states()), ids=[name for name, _ in _states()])
def test_every_command_in_every_state(name: str, before: list[AnyCommand], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "LOSSES_MAX", LOSSES_MAX)
    for command in _commands():
        pair = Pair()
        for earlier in before:
            pair.apply(earlier)
        pair.apply(command)
        pair.compare()
        if not isinstance(command, Canary):
            digest = pair.replica.digest
            pair.apply(command)
            assert pair.replica.digest == digest, "repeated at once, a command changes nothing"


REPLAY = """
import sys
from consensus.state.apply import apply, digest
from consensus.state.tables import TABLES
from storage.memory import MemoryStore

with MemoryStore(TABLES).write() as txn:
    for index, line in enumerate(sys.stdin, 1):
        apply(txn, index, bytes.fromhex(line))
    print(digest(txn).hex())
"""


@pytest.mark.parametrize("seed", ["0", "12345"])
def test_a_recorded_log_gives_the_same_digest_under_another_hash_seed(seed: str) -> None:
    """In another process, because the seed is fixed when Python starts."""
    replica = Replica()
    for _, before in _states():
        for command in [*before, *_commands()]:
            replica.apply(command)
    done = subprocess.run(
        [sys.executable, "-c", REPLAY],
        input="\n".join(data.hex() for data in replica.log),
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert bytes.fromhex(done.stdout.strip()) == replica.digest
