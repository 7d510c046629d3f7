"""Whether a member is what a placement asks for: conditions on labels, versions of rituals. Pure.

The operators are those of node affinity in Kubernetes (In, NotIn, Exists, DoesNotExist). Versions are compared by the
numbers between their dots, missing ones counting as 0; one that holds anything else is equal to itself only.
"""

import re
from collections.abc import Mapping

from consensus.state.rows import Condition, Member

_COMPARISON = re.compile(r"(>=|<=|==|!=|>|<)?\s*([A-Za-z0-9][A-Za-z0-9._+-]*)")
_NUMBERS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})*")


def labels_of(member: Member) -> dict[str, str]:
    """With those that every node has: `arch` and `os` are told with its registration, the others are in its row."""
    return {**member.labels, "name": member.name, "id": member.node_id, "tier": member.tier}


def holds(condition: Condition, labels: Mapping[str, str]) -> bool:
    value = labels.get(condition.label)
    match condition.operator:
        case "in":
            return value in condition.values
        case "not_in":
            return value not in condition.values
        case "exists":
            return value is not None
        case "missing":
            return value is None


def told(condition: Condition) -> str:
    """For a person."""
    values = ", ".join(condition.values)
    match condition.operator:
        case "in":
            return f"{condition.label} = {values}" if len(condition.values) == 1 else f"{condition.label} in {values}"
        case "not_in":
            return f"{condition.label} not in {values}"
        case "exists":
            return f"{condition.label} exists"
        case "missing":
            return f"{condition.label} does not exist"


def is_range(wanted: str) -> bool:
    """Whether it can be understood: `1.2`, or comparisons with commas between them."""
    return all(
        (found := _COMPARISON.fullmatch(part.strip())) is not None
        and (found[1] in (None, "==", "!=") or _NUMBERS.fullmatch(found[2]) is not None)
        for part in wanted.split(",")
    )


def version_fits(version: str, wanted: str) -> bool:
    return all(_compares(version, part.strip()) for part in wanted.split(","))


def _compares(version: str, part: str) -> bool:
    found = _COMPARISON.fullmatch(part)
    if found is None:
        return False
    operator, other = found[1] or "==", found[2]
    mine, theirs = _numbers(version), _numbers(other)
    if mine is None or theirs is None:
        return (version == other) if operator == "==" else (version != other) if operator == "!=" else False
    match operator:
        case "==":
            return mine == theirs
        case "!=":
            return mine != theirs
        case ">=":
            return mine >= theirs
        case "<=":
            return mine <= theirs
        case ">":
            return mine > theirs
        case _:
            return mine < theirs


def _numbers(version: str) -> tuple[int, ...] | None:
    if not _NUMBERS.fullmatch(version):
        return None
    numbers = [int(part) for part in version.split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
