"""The state machine against its dumb twin: any commands in any order, and every command in every state."""

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from consensus.errors import UpgradeRequired
from consensus.state import attempts as attempts_module
from consensus.state import branches, members, queries, sessions
from consensus.state.commands import AnyCommand, Applied, Canary, Offer, Refused
from consensus.state.encoding import encode_command
from consensus.state.rows import Branch, Placement
from consensus.state.versions import COMMAND_VERSION
from storage.keys import u64
from tests.property.state_twin import Answer, Twin, failure_code
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
    knowledge,
    known_patterns,
    offer,
    outcome,
    queue_head,
    register,
    requeue,
    session_id,
    set_status,
    spec,
    speculate,
    submit,
)

LOSSES_MAX, OPEN_SESSIONS_MAX, FORMER_MAX = 2, 3, 2
SESSIONS = [session_id(number) for number in range(1, 6)]
RITUALS = register().rituals
LIMITS = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

nodes = st.sampled_from(NODES[:3])
numbers = st.integers(1, 4)
times = st.integers(0, 40)
session_ids = st.sampled_from(SESSIONS)
places = st.integers(-1, 4)
attempts = st.integers(0, 4)
results = st.builds(knowledge, patterns=st.lists(st.sampled_from(["p", "q"]), unique=True, max_size=2))
offers = st.none() | st.builds(offer, nodes, numbers, st.integers(0, 9))
blind_assignments = st.builds(assignment, session_ids, places, attempts, nodes, numbers, st.integers(-1, 9))
blind_outcomes = st.builds(outcome, session_ids, places, attempts, nodes, knowledge=results) | st.builds(
    outcome, session_ids, places, attempts, nodes, failure=st.just(FAILED), is_lost=st.booleans()
)


class Pair:
    """The machine and the twin side by side."""

    def __init__(self) -> None:
        self.replica = Replica()
        self.twin = Twin(losses_max=LOSSES_MAX, open_sessions_max=OPEN_SESSIONS_MAX, former_max=FORMER_MAX)
        self.last: AnyCommand | None = None

    def apply(self, command: AnyCommand) -> None:
        answer = self.replica.apply(command)
        expected = self.twin.apply(self.replica.index, command)
        assert seen_answer(answer) == expected, (command, answer)
        assert sorted(seen_event(event) for event in self.replica.events) == sorted(self.twin.events)
        self.last = command

    def compare(self) -> None:
        twin, read = self.twin, self.replica.read
        assert [
            (e.session_id, e.branch_index, e.attempt, e.avoid, e.not_before_ms) for e in read(queue_head)
        ] == twin.queue()
        held = [(x.session_id, x.branch_index, x.attempt, x.node_id, x.deadline_ms) for x in read(queries.leases)]
        assert held == twin.leases()
        seen_members = {
            m.node_id: (
                (m.instance_id, m.status, m.slots, sorted(m.rituals), m.parent, m.ritual_limits, m.former_instance_ids),
                (m.is_draining, m.is_leaving, m.hand_back_at_ms),
            )
            for m in read(queries.members)
        }
        assert seen_members == {
            node: ((m["instance"], m["status"], *m["offer"][1:], m["former"]), m["drain"])
            for node, m in twin.members.items()
        }
        found = {session.id: session for session in read(queries.list_sessions, limit=999)}
        assert set(found) == set(twin.sessions)
        for identity, expected in twin.sessions.items():
            session = found[identity]
            assert (session.status, failure_code(session.failure)) == (expected["status"], expected["failure"])
            assert (session.started_at_ms, session.completed_at_ms) == (expected["started"], expected["ended"])
            for part in expected["branches"]:
                branch: Branch = read(queries.get_branch, identity, part["place"])
                assert seen_branch(branch) == {name: part[name] for name in seen_branch(branch)}
                tried = read(queries.list_attempts, identity, part["place"])
                assert [
                    {
                        "node": a.node_id,
                        "status": a.status,
                        "failure": _known(failure_code(a.failure)),
                        "late": a.late_result_digest is not None,
                    }
                    for a in tried
                ] == part["attempts"]
                if not part["is_last"]:
                    assert read(queries.get_result, identity, part["place"]) == part["knowledge"]
        insights = list(reversed(read(queries.list_insights, limit=999)))
        assert [
            {
                "session": i.session_id,
                "patterns": i.total_patterns,
                "connections": i.total_connections,
                "used": i.branches_used,
                "failed": i.branches_failed,
                "duration": found[i.session_id].duration_sum_ms,
            }
            for i in insights
        ] == twin.insights
        assert {row.pattern: row.count for row in read(known_patterns)} == twin.patterns
        canary = read(queries.last_canary)
        assert (None if canary is None else (canary.index, canary.node_id)) == twin.canary


def seen_answer(answer: Applied | Refused) -> Answer:
    if isinstance(answer, Applied):
        return ("applied", answer.changed, answer.skipped)
    return ("refused", answer.code)


def seen_event(event: Any) -> str:
    fields = msgspec.structs.asdict(event)
    words = [fields[name] for name in ("session_id", "branch_index") if name in fields] or [fields["node_id"]]
    return " ".join([event.__struct_config__.tag, *map(str, words)])


def seen_branch(branch: Branch) -> dict[str, Any]:
    return {
        "status": branch.status,
        "attempt": branch.attempt,
        "node": branch.node_id,
        "failures": branch.failures,
        "losses": branch.losses,
        "deadline": branch.deadline_ms,
        "duration": branch.duration_ms,
        "failure": failure_code(branch.failure),
    }


def _known(code: str | None) -> str | None:
    """The twin does not tell apart the ways in which a node can be gone."""
    return "gone" if code in ("node_dead", "node_left", "node_restarted") else code


class Comparison(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.limits = ExitStack()
        self.limits.enter_context(patch.object(attempts_module, "LOSSES_MAX", LOSSES_MAX))
        self.limits.enter_context(patch.object(sessions, "OPEN_SESSIONS_MAX", OPEN_SESSIONS_MAX))
        self.limits.enter_context(patch.object(members, "FORMER_INSTANCES_MAX", FORMER_MAX))
        self.pair = Pair()
        for node in NODES[:2]:
            self.pair.apply(register(node))
        self.pair.apply(submit(S1, 1))
        self.pair.apply(submit(S2, 2))

    def teardown(self) -> None:
        self.limits.close()

    @rule(
        node=nodes,
        number=numbers,
        at_ms=times,
        slots=st.integers(1, 2),
        names=st.sets(st.sampled_from(list(RITUALS))),
        is_limited=st.booleans(),
    )
    def register(self, node: Any, number: int, at_ms: int, slots: int, names: set[str], is_limited: bool) -> None:
        offered = {name: RITUALS[name] for name in sorted(names)}
        limits = dict.fromkeys(offered, 1) if is_limited else {}
        self.pair.apply(register(node, number, at_ms=at_ms, slots=slots, rituals=offered, ritual_limits=limits))

    @rule(node=nodes)
    def come_back(self, node: Any) -> None:
        """So that most of the time somebody can work."""
        member = self.pair.twin.members.get(node)
        if member is not None:
            number = int(member["instance"].rpartition("-")[2])
            self.pair.apply(register(node, number, at_ms=member["registered"] + 1))

    @rule(node=nodes, parent=nodes, odds=st.integers(-1, 1))
    def change_parent(self, node: Any, parent: Any, odds: int) -> None:
        """Of the instance that is known; sometimes by a message that comes late."""
        member = self.pair.twin.members.get(node)
        if member is not None:
            number = int(member["instance"].rpartition("-")[2])
            command = register(node, number, at_ms=max(0, member["registered"] + odds))
            self.pair.apply(replace(command, parent=parent, parent_instance=f"{parent}-1"))

    @rule(
        node=nodes,
        number=numbers,
        status=st.sampled_from(["alive", "suspect", "dead", "left"]),
        registered=st.none() | times,
    )
    def set_status(self, node: Any, number: int, status: Any, registered: int | None) -> None:
        self.pair.apply(replace(set_status(node, status, number), registered_at_ms=registered))

    @rule(node=nodes, number=numbers, is_leaving=st.none() | st.booleans(), until=st.none() | times)
    def drain(self, node: Any, number: int, is_leaving: bool | None, until: int | None) -> None:
        self.pair.apply(drain(node, number, is_leaving=is_leaving, hand_back_at_ms=until))

    @rule(
        identity=session_ids,
        count=st.integers(1, 3),
        attempts_max=st.integers(1, 2),
        at_ms=times,
        offered=offers,
        priority=st.sampled_from([0, 0, 1, -1, 10]),
        where=st.sampled_from([None, None, Placement(node="n1")]),
    )
    def submit(
        self,
        identity: Any,
        count: int,
        attempts_max: int,
        at_ms: int,
        offered: Offer | None,
        priority: int,
        where: Placement | None,
    ) -> None:
        parts = [spec(attempts_max=attempts_max, placement=where) for _ in range(count)]
        last = spec("consolidate", attempts_max=attempts_max, placement=where)
        self.pair.apply(
            submit(identity, at_ms=at_ms, specs=parts, consolidation=last, offer=offered, priority=priority)
        )

    @rule(identity=session_ids, odds=st.integers(0, 3))
    def cancel(self, identity: Any, odds: int) -> None:
        if odds == 0:
            self.pair.apply(cancel(identity))

    @rule(count=st.integers(1, 6), node=nodes, at_ms=times, blind=st.lists(blind_assignments, max_size=2))
    def assign(self, count: int, node: Any, at_ms: int, blind: list[Any]) -> None:
        member = self.pair.twin.members.get(node)
        number = int(member["instance"].rpartition("-")[2]) if member else 1
        head = [
            assignment(s, p, a, node, number)  # type: ignore[arg-type]
            for s, p, a, *_ in self.pair.twin.queue()[:count]
        ]
        self.pair.apply(assign(*head, *blind, *head[:1], at_ms=at_ms))

    @rule(data=st.data(), at_ms=times, blind=st.lists(blind_assignments, max_size=1))
    def speculate(self, data: st.DataObject, at_ms: int, blind: list[Any]) -> None:
        beside = []
        for s, p, a, _, _ in self.pair.twin.leases():
            node = data.draw(nodes)
            member = self.pair.twin.members.get(node)
            number = int(member["instance"].rpartition("-")[2]) if member else 1
            beside.append(assignment(s, p, a + 1, node, number))  # type: ignore[arg-type]
        self.pair.apply(speculate(*beside, *blind, *beside[:1], at_ms=at_ms))

    @rule(data=st.data(), at_ms=times, blind=st.lists(blind_outcomes, max_size=2), offered=offers)
    def complete(self, data: st.DataObject, at_ms: int, blind: list[Any], offered: Offer | None) -> None:
        known = []
        for s, p, a, node, _ in self.pair.twin.leases():
            how = data.draw(st.sampled_from(["ok", "ok", "failed", "lost", "not yet"]))
            if how == "ok":
                known.append(outcome(s, p, a, node, knowledge=data.draw(results)))  # type: ignore[arg-type]
            elif how != "not yet":
                rest = data.draw(st.sampled_from([0, 77]))
                known.append(outcome(s, p, a, node, failure=FAILED, is_lost=how == "lost", retry_at_ms=rest))  # type: ignore[arg-type]
        self.pair.apply(complete(*known, *blind, *known[:1], at_ms=at_ms, offered=offered))

    @rule(data=st.data())
    def late(self, data: st.DataObject) -> None:
        """A node that was given up delivers after all."""
        ended = [
            outcome(identity, part["place"], number, attempt["node"])  # type: ignore[arg-type]
            for identity, session in self.pair.twin.sessions.items()
            for part in session["branches"]
            for number, attempt in enumerate(part["attempts"], 1)
            if attempt["status"] != "processing"
        ]
        if ended:
            self.pair.apply(complete(data.draw(st.sampled_from(ended))))

    @rule(identity=session_ids, place=places, attempt=attempts, is_lost=st.booleans())
    def requeue(self, identity: Any, place: int, attempt: int, is_lost: bool) -> None:
        self.pair.apply(requeue(identity, place, attempt, is_lost=is_lost))

    @rule(node=nodes)
    def canary(self, node: Any) -> None:
        self.pair.apply(Canary(node_id=node, payload=b"", at_ms=1))

    @rule(data=st.binary(max_size=40).filter(lambda data: data[:1] <= b"\x01"))
    def garbage(self, data: bytes) -> None:
        assert isinstance(self.pair.replica.apply_bytes(data), Refused)

    @rule()
    def repeat(self) -> None:
        """At once, as a proposer does that did not hear the answer: nothing changes."""
        if self.pair.last is not None and not isinstance(self.pair.last, Canary):
            before = self.pair.replica.digest
            self.pair.apply(self.pair.last)
            assert self.pair.replica.digest == before

    @invariant()
    def agrees(self) -> None:
        self.pair.compare()


def test_the_machine_agrees_with_its_twin() -> None:
    run_state_machine_as_test(Comparison, settings=LIMITS)


def _end_unless_superseded(work: Any, key: Any, branch: Any, running: Any, status: str, **details: Any) -> None:
    if status != "superseded":
        attempts_module.end(work, key, branch, running, status, **details)  # type: ignore[arg-type]


FAULTS: dict[str, Any] = {
    "urgent sessions wait their turn": lambda: patch.object(
        sessions, "queue_prefix", lambda priority, index: u64(index)
    ),
    "an attempt more than allowed": lambda: patch.object(attempts_module, "LOSSES_MAX", LOSSES_MAX + 1),
    "the consolidation is never queued": lambda: patch.object(branches, "settle", lambda work: None),
    "nothing is speculative": lambda: patch.object(branches, "_assign_beside", lambda work, item: False),
    "the slower one keeps its lease": lambda: patch.object(branches, "end", _end_unless_superseded),
    "nothing is assigned": lambda: patch.object(branches, "_assign_one", lambda work, item, member: False),
    "late results leave no trace": lambda: patch.object(branches, "_keep_evidence", lambda *everything: None),
    "the dead keep their leases": lambda: patch.object(members, "release_leases", lambda *a, **k: 0),
    "any body is the same body": lambda: patch.object(sessions, "body_digest", lambda command: b"same"),
    "former instances are forgotten": lambda: patch.object(members, "FORMER_INSTANCES_MAX", -99),
    "open sessions are not counted": lambda: patch.object(sessions, "_count_open", lambda work, change: None),
    "patterns are not counted": lambda: patch.object(branches, "note_patterns", lambda *everything: None),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_broken_rule_is_noticed(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise the comparison above proves nothing."""

    class Broken(Comparison):
        def __init__(self) -> None:
            super().__init__()
            self.limits.enter_context(FAULTS[fault]())

    planted = settings(
        LIMITS, max_examples=1000, phases=[Phase.generate], derandomize=True, database=None, report_multiple_bugs=False
    )
    with pytest.raises((AssertionError, KeyError)):  # of the twin, of the invariants or of the machine
        run_state_machine_as_test(Broken, settings=planted)
    capsys.readouterr()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"\x01" + tail))
def test_arbitrary_bytes_never_raise(data: bytes) -> None:
    _apply_to_a_busy_state(data)


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_damaged_commands_never_raise(data: st.DataObject) -> None:
    good = bytearray(encode_command(data.draw(st.sampled_from(_every_command()))))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    _apply_to_a_busy_state(bytes(good))


msgpack_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_commands_with_any_field_replaced_never_raise(data: st.DataObject) -> None:
    """Well-formed MessagePack of the right shape with one wrong value somewhere."""
    tree: Any = msgspec.msgpack.decode(encode_command(data.draw(st.sampled_from(_every_command())))[1:])
    spot = tree
    while True:
        key = data.draw(st.sampled_from(sorted(spot) if isinstance(spot, dict) else range(len(spot))))
        if not isinstance(spot[key], (list, dict)) or not spot[key] or data.draw(st.booleans()):
            break
        spot = spot[key]
    spot[key] = data.draw(msgpack_values)
    _apply_to_a_busy_state(b"\x01" + msgspec.msgpack.encode(tree))


def _every_command() -> list[AnyCommand]:
    return [
        register(A, 2),
        set_status(A, "dead"),
        drain(A, hand_back_at_ms=9),
        submit(session_id(9)),
        cancel(S1),
        assign(assignment(S1, 1), assignment(S2, 0)),
        speculate(assignment(S1, 0, 2, NODES[1])),
        complete(outcome(S1, 0), outcome(S2, 9), outcome(S1, 0, failure=FAILED)),
        requeue(S1, 0, is_lost=True),
        Canary(node_id=A, payload=b"x", at_ms=5),
    ]


def _apply_to_a_busy_state(data: bytes) -> None:
    replica = Replica(register(A), submit(S1), submit(S2), assign(assignment(S1, 0)))
    if data and data[0] > COMMAND_VERSION:
        with pytest.raises(UpgradeRequired):
            replica.apply_bytes(data)
        return
    first = replica.apply_bytes(data)
    before = replica.digest
    again = replica.apply_bytes(data)
    assert isinstance(again, Refused) == isinstance(first, Refused)
    if data[:9] != b"\x01\x94\xa6canary"[:9]:
        assert replica.digest == before
