"""The state machine as a whole: total, deterministic, numbered events, bounded tables."""

import os
import subprocess
import sys

import msgspec
import pytest

from consensus.state import apply as machine
from consensus.state import encoding, patterns, queries
from consensus.state.commands import AnyCommand, Canary, Refused
from consensus.state.encoding import CommandError, decode_command, encode_command
from consensus.state.events import BranchCompleted, Numbered, SessionSubmitted
from consensus.state.tables import EVENTS, TABLES, uuid_key
from storage.environment import Environment
from storage.memory import MemoryStore
from tests.unit.state.model import (
    S1,
    S2,
    A,
    Replica,
    assign,
    assignment,
    cancel,
    complete,
    knowledge,
    known_patterns,
    outcome,
    register,
    submit,
)


def story() -> Replica:
    replica = Replica(register(A), submit(S1), submit(S2, branches=3))
    replica.accept(assign(assignment(S1, 0), assignment(S1, 1), assignment(S2, 0)))
    replica.accept(complete(outcome(S1, 0), outcome(S1, 1)))
    replica.accept(assign(assignment(S1, 2)))
    replica.accept(complete(outcome(S1, 2, knowledge=knowledge(result={"b": 1, "a": {"d": 2, "c": 3}}))))
    replica.accept(cancel(S2))
    replica.accept(Canary(node_id=A, payload=b"x", at_ms=99))
    return replica


def _canary(payload: bytes) -> bytes:
    return encode_command(Canary(node_id=A, payload=payload, at_ms=1))


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("malformed", b""),
        ("malformed", b"\x01"),
        ("malformed", b"\x00" + _canary(b"")[1:]),
        ("malformed", _canary(b"") + b"\x00"),
        ("malformed", _canary(b"")[:-1]),
        ("malformed", b"\x01" + b"\x91" * 100_000),
        ("malformed", b"\x01" + msgspec.msgpack.encode(["no_such_command", 1])),
        ("malformed", b"\x01" + msgspec.msgpack.encode(["canary", "", b"", 1])),
        ("malformed", b"\x01" + msgspec.msgpack.encode(["canary", A, b"", -1])),
        ("malformed", b"\x01" + msgspec.msgpack.encode(["canary", A, b"", 2**63])),
        ("malformed", b"\x01\x94\xa6canary\xa2\xff\xfe\xc4\x00\x01"),
        ("too_large", _canary(b"x" * 1_025)),
        ("too_large", b"\x01" * (1024 * 1024 + 1)),
    ],
)
def test_bytes_that_are_no_command_are_refused(code: str, data: bytes) -> None:
    replica = Replica()
    answer = replica.apply_bytes(data)
    assert isinstance(answer, Refused)
    assert answer.code == code


def test_a_command_that_is_too_large_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "COMMAND_BYTES_MAX", 100)
    with pytest.raises(CommandError) as caught:
        encode_command(submit())
    assert caught.value.code == "too_large"


def test_commands_survive_encoding() -> None:
    for command in (register(), submit(), assign(assignment(S1, 0)), complete(outcome(S1, 0)), cancel()):
        assert decode_command(encode_command(command)) == command


def test_a_canary_is_noted_at_its_index() -> None:
    replica = Replica(register(A))
    replica.accept(Canary(node_id=A, payload=b"x", at_ms=7), changed=1)
    assert replica.events == []
    found = replica.read(queries.last_canary)
    assert (found.index, found.node_id, found.payload, found.at_ms) == (2, A, b"x", 7)


def test_events_can_be_read_from_any_place() -> None:
    replica = story()
    everything: list[Numbered] = replica.read(queries.events_since, 0, -1, 1_000)
    numbers = [(item.index, item.position) for item in everything]
    assert numbers == sorted(set(numbers))
    assert isinstance(everything[1].event, SessionSubmitted)
    assert sum(isinstance(item.event, BranchCompleted) for item in everything) == 3
    for place, (index, position) in enumerate(numbers):
        assert replica.read(queries.events_since, index, position, 1_000) == everything[place + 1 :]
        assert replica.read(queries.events_since, index, position, 2) == everything[place + 1 : place + 3]


def test_old_events_are_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "EVENTS_RETAINED", 3)
    replica = Replica()
    for number in range(1, 10):
        replica.accept(register(A, number))
    assert replica.read(queries.oldest_event_index) == 7
    assert replica.read(lambda txn: txn.count(EVENTS)) == 3


def test_patterns_are_counted_over_results_and_insights() -> None:
    replica = story()
    counts = replica.read(queries.pattern_counts, ["tides", " TIDES ", "Moon phase", "unseen"])
    assert counts == {"tides": 3, " TIDES ": 3, "Moon phase": 3, "unseen": 0}
    assert [row.pattern for row in replica.read(known_patterns)] == ["moon phase", "tides"]
    assert {row.first_session_id for row in replica.read(known_patterns)} == {S1}


def test_so_many_patterns_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "PATTERNS_MAX", 5)
    replica = Replica(register(A), submit(branches=30))
    for index in range(30):
        replica.accept(assign(assignment(S1, index)))
        found = [f"p{index}", f"q{index}", "", "   "]
        replica.accept(complete(outcome(S1, index, knowledge=knowledge(patterns=found))))
    assert len(replica.read(known_patterns)) == 5


def test_lists_go_on_where_they_stopped() -> None:
    replica = story()
    newest = replica.read(queries.list_sessions, limit=1)
    assert [session.id for session in newest] == [S2]
    assert [row.id for row in replica.read(queries.list_sessions, after=newest[0].submit_index)] == [S1]
    assert [row.id for row in replica.read(queries.list_sessions, status="completed")] == [S1]
    assert [row.branch_index for row in replica.read(queries.list_branches, S2, after=0)] == [1, 2]
    assert [row.branch_index for row in replica.read(queries.list_branches, S2, after=0, limit=1)] == [1]
    assert replica.read(queries.list_branches, S1, status="failed") == []
    assert replica.read(queries.list_insights, after=1) == []
    pairs = replica.read(lambda txn: list(queries.branches_with_results(txn, S1, 10**6)))
    assert [(branch.branch_index, result) for branch, result, _ in pairs] == [(0, knowledge()), (1, knowledge())]


def test_what_is_not_there_is_not_found() -> None:
    replica = story()
    for bad in ("", "x", S1.upper() + "0"):
        assert replica.read(queries.get_session, bad) is None
        assert replica.read(queries.get_branch, bad, 0) is None
        assert replica.read(queries.find_branch, bad) is None
        assert replica.read(queries.get_insight, bad) is None
        assert replica.read(queries.get_member, bad) is None
        assert replica.read(queries.list_branches, bad) == []
        assert replica.read(queries.list_attempts, bad, 0) == []
    assert replica.read(queries.get_branch, S1, -1) is None
    assert replica.read(queries.get_branch, S1, 99) is None
    assert uuid_key(S1 + "\n") is None


def replayed_digest(log: list[bytes]) -> bytes:
    store = MemoryStore(TABLES)
    with store.write() as txn:
        for index, data in enumerate(log, 1):
            machine.apply(txn, index, data)
        return machine.digest(txn)


def test_the_same_log_gives_the_same_digest() -> None:
    replica = story()
    assert replayed_digest(replica.log) == replica.digest != Replica().digest


def test_the_same_log_gives_the_same_digest_in_lmdb(tmp_path: object) -> None:
    replica = story()
    store = Environment.open(tmp_path, TABLES)  # type: ignore[arg-type]
    try:
        with store.write() as txn:
            for index, data in enumerate(replica.log, 1):
                machine.apply(txn, index, data)
        with store.read() as snapshot:
            assert machine.digest(snapshot) == replica.digest
    finally:
        store.close()


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_same_log_gives_the_same_digest_under_another_hash_seed(seed: str) -> None:
    """Set order and the like differ there; the rows must not."""
    script = "from tests.unit.state.test_apply import story; print(story().digest.hex())"
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == story().digest.hex()


def test_submissions_are_told_from_other_commands_by_their_bytes() -> None:
    assert encoding.is_submission(encode_command(submit()))
    canary = Canary(node_id=A, payload=b"\xaesubmit_session", at_ms=1)
    others: list[AnyCommand] = [register(), cancel(), assign(), complete(), canary]
    assert not any(encoding.is_submission(encode_command(command)) for command in others)
    assert not encoding.is_submission(b"")
