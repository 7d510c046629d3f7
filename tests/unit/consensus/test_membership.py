"""Which change of voters and learners is allowed, and what it does to the quorum."""

import pytest

from consensus.membership import (
    CONFIGURATION_BYTES_MAX,
    LEARNERS_MAX,
    REMOVED_MAX,
    VOTERS_MAX,
    Change,
    ChangeKind,
    Configuration,
    Quorum,
    Refusal,
    Standing,
    decode_configuration,
    encode_configuration,
    judge,
    plan,
)
from storage.ids import NodeId

A, B, C, D, E = (NodeId(name) for name in "abcde")
THREE = Configuration((A, B, C), (D,))
ALL = Standing(A, frozenset((B, C, D)))


def code(configuration: Configuration, kind: ChangeKind, node: NodeId, standing: Standing = ALL) -> str:
    verdict = judge(configuration, Change(kind, node), standing)
    assert isinstance(verdict, Refusal), verdict
    return verdict.code


@pytest.mark.parametrize(
    ("kind", "node", "after"),
    [
        ("add", E, Configuration((A, B, C), (D, E))),
        ("promote", D, Configuration((A, B, C, D))),
        ("demote", B, Configuration((A, C), (B, D))),
        ("remove", B, Configuration((A, C), (D,), (B,))),
        ("remove", D, Configuration((A, B, C), (), (D,))),
        ("leave", B, Configuration((A, C), (D,))),
        ("leave", D, Configuration((A, B, C))),
    ],
)
def test_a_change_is_made_and_asked_for_again_it_is_made_already(
    kind: ChangeKind, node: NodeId, after: Configuration
) -> None:
    change = Change(kind, node)
    assert judge(THREE, change, ALL) == after
    assert judge(after, change, ALL) is after
    assert len(set(THREE.voters) ^ set(after.voters)) <= 1, "two majorities need not share a voter"


def test_what_is_refused() -> None:
    assert code(THREE, "promote", E) == "unknown_node"
    assert code(THREE, "remove", E) == "unknown_node"
    assert code(Configuration((A,), (D,)), "remove", A) == "last_voter"
    assert code(Configuration((A,), (), (B,)), "add", B) == "removed"
    assert code(THREE, "add", E, Standing(A, frozenset(), is_changing=True)) == "change_pending"
    assert code(THREE, "add", E, Standing(A, frozenset(), is_new=True)) == "leader_is_new"
    assert code(THREE, "promote", D, Standing(A, frozenset((B, C)))) == "not_caught_up"
    many = tuple(NodeId(f"n{i:02}") for i in range(LEARNERS_MAX))
    assert code(Configuration((A,), many), "add", B) == "too_many_learners"
    voters = (A, *many[: VOTERS_MAX - 1])
    assert code(Configuration(voters, (D,)), "promote", D) == "too_many_voters"


def test_who_has_left_may_come_back_and_who_was_removed_may_not() -> None:
    left = judge(THREE, Change("leave", B), ALL)
    assert isinstance(left, Configuration)
    assert judge(left, Change("add", B), ALL) == Configuration((A, C), (B, D))
    assert judge(left, Change("leave", B), ALL) is left
    assert code(Configuration((A,), (D,)), "leave", A) == "last_voter"
    assert code(THREE, "leave", B, Standing(A, frozenset((B, D)))) == "quorum_lost"


def test_never_fewer_healthy_voters_than_a_majority() -> None:
    one_dead = Standing(A, frozenset((B, D)))
    assert code(THREE, "remove", B, one_dead) == "quorum_lost"
    assert judge(THREE, Change("remove", C), one_dead) == Configuration((A, B), (D,), (C,))
    assert judge(THREE, Change("promote", D), one_dead) == Configuration((A, B, C, D))
    two_dead = Standing(A, frozenset((D,)))
    assert code(THREE, "promote", D, two_dead) == "quorum_lost"


def test_a_plan_says_what_a_replacement_does() -> None:
    one_dead = Standing(A, frozenset((B, D)))
    found = plan(THREE, [Change("promote", D), Change("remove", C)], one_dead)
    assert found.refusal is None
    assert (found.before, found.after) == (Quorum(3, 2, 2), Quorum(3, 2, 3))
    assert (found.before.survives, found.after.survives) == (0, 1)
    assert found.configuration == Configuration((A, B, D), (), (C,))
    assert plan(found.configuration, found.steps, one_dead).steps == ()


def test_a_plan_ends_at_the_first_refusal() -> None:
    found = plan(THREE, [Change("promote", D), Change("remove", E), Change("remove", B)], ALL)
    assert found.refusal is not None
    assert found.refusal.code == "unknown_node"
    assert found.configuration == Configuration((A, B, C, D))


def test_removed_ids_are_forgotten_in_the_end() -> None:
    configuration = Configuration((A,), (B,), tuple(NodeId(f"n{i}") for i in range(REMOVED_MAX)))
    after = judge(configuration, Change("remove", B), ALL)
    assert isinstance(after, Configuration)
    assert (len(after.removed), after.removed[-1]) == (REMOVED_MAX, B)
    assert decode_configuration(encode_configuration(after)) == after


@pytest.mark.parametrize(
    "configuration",
    [
        Configuration(),
        Configuration((A, A)),
        Configuration((A,), (A,)),
        Configuration((A,), (), (A,)),
        Configuration(tuple(NodeId(f"n{i}") for i in range(VOTERS_MAX + 1))),
    ],
)
def test_impossible_configurations_are_not_read(configuration: Configuration) -> None:
    assert decode_configuration(encode_configuration(configuration)) is None


NO_TEXT = b"\x94\x91\xa1\xff\x90\x90\x90"
"""One voter, whose id is no UTF-8."""


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x91" * 5000, b"\x93\x90\x90", NO_TEXT, b"x" * (CONFIGURATION_BYTES_MAX + 1)]
)
def test_garbage_is_not_read(data: bytes) -> None:
    assert decode_configuration(data) is None
