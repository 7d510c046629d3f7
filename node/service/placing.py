"""Reads what a submission says of where its branches may execute. Pure.

`{"gpu": "a4000"}` the label has this value; `["x86_64", "aarch64"]` one of these; `{"not_in": [...]}` none of these;
`true` it is there; `false` it is not.
"""

from collections.abc import Mapping
from typing import Final, Literal, NoReturn, TypeAlias

from consensus.state.limits import CONDITION_VALUES_MAX, CONDITIONS_MAX, LABEL_CHARACTERS_MAX, TEXT_BYTES_MAX
from consensus.state.rows import Condition, Placement
from node.scheduler.matching import is_range
from node.service.errors import ServiceError

PLACEMENT_KEYS: Final = ("require", "prefer", "node", "tier", "spread", "ritual_version")

Operator: TypeAlias = Literal["in", "not_in", "exists", "missing"]

_TIERS: Final = ("core", "edge", "leaf")
_SHAPES: Final = 'text, a list of texts, true, false, {"in": [...]} or {"not_in": [...]}'


def parse_placement(document: Mapping[str, object], where: str, default: Placement | None) -> Placement | None:
    """`default` is that of the session: what a branch says itself takes the place of what the session says of the same.
    Raises `ServiceError` `invalid_session`."""
    base = default or Placement()
    dot = f"{where}." if where else ""
    require, tier_before = _without_tier(base.require)
    if document.get("require") is not None:
        require = _conditions(document["require"], f"{dot}require")
    tier = document.get("tier")
    if tier is not None:
        kinds = tier if isinstance(tier, list) else [tier]
        if not kinds or any(kind not in _TIERS for kind in kinds):
            _refuse(f"{dot}tier", f"must be one or more of {', '.join(_TIERS)}")
        tier_before = [Condition(label="tier", operator="in", values=[str(kind) for kind in kinds])]
    prefer = base.prefer
    if document.get("prefer") is not None:
        prefer = _conditions(document["prefer"], f"{dot}prefer")
    version = _text(document, "ritual_version", dot, base.version)
    if version is not None and not is_range(version):
        _refuse(f"{dot}ritual_version", "must be a version as 1.2, or comparisons as >=1.2, <2")
    placement = Placement(
        require=[*require, *tier_before],
        prefer=prefer,
        node=_text(document, "node", dot, base.node),
        version=version,
        spread=_text(document, "spread", dot, base.spread),
    )
    return None if placement == Placement() else placement


def _without_tier(conditions: list[Condition]) -> tuple[list[Condition], list[Condition]]:
    tier = [condition for condition in conditions if condition.label == "tier"]
    return [condition for condition in conditions if condition.label != "tier"], tier


def _conditions(value: object, at: str) -> list[Condition]:
    if not isinstance(value, dict):
        _refuse(at, 'must be an object of labels, such as {"gpu": "a4000"}')
    if len(value) > CONDITIONS_MAX - 1:
        _refuse(at, f"has {len(value)} labels; at most {CONDITIONS_MAX - 1} are accepted")
    found: list[Condition] = []
    for label, wanted in value.items():
        here = f"{at}.{label[:80]}"
        if not 0 < len(label) <= LABEL_CHARACTERS_MAX:
            _refuse(here, f"names of labels have 1 to {LABEL_CHARACTERS_MAX} characters")
        match wanted:
            case True | False:
                found.append(Condition(label=label, operator="exists" if wanted else "missing"))
            case str() | list():
                found.append(_listed(label, "in", wanted, here))
            case {"in": listed} if len(wanted) == 1:
                found.append(_listed(label, "in", listed, f"{here}.in"))
            case {"not_in": listed} if len(wanted) == 1:
                found.append(_listed(label, "not_in", listed, f"{here}.not_in"))
            case _:
                _refuse(here, f"must be {_SHAPES}")
    return found


def _listed(label: str, operator: Operator, wanted: object, at: str) -> Condition:
    values = wanted if isinstance(wanted, list) else [wanted]
    if not 0 < len(values) <= CONDITION_VALUES_MAX:
        _refuse(at, f"must name 1 to {CONDITION_VALUES_MAX} values")
    texts: list[str] = []
    for one in values:
        if not isinstance(one, str) or len(one) > LABEL_CHARACTERS_MAX:
            _refuse(at, f"values of labels are texts of at most {LABEL_CHARACTERS_MAX} characters: put them in quotes")
        texts.append(one)
    return Condition(label=label, operator=operator, values=texts)


def _text(document: Mapping[str, object], name: str, dot: str, default: str | None) -> str | None:
    value = document.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or not value.strip() or len(value) * 4 > TEXT_BYTES_MAX:
        _refuse(f"{dot}{name}", f"must be text of 1 to {TEXT_BYTES_MAX // 4} characters")
    return value


def _refuse(at: str, message: str) -> NoReturn:
    raise ServiceError(
        "invalid_session", f"{at}: {message}.", "See GET /openapi.json, schema SessionSubmission.", at=at
    )
