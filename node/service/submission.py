"""Turns the JSON body of a submission into the command that the mesh agrees on. Pure: `now_ms` and a fallback id are
arguments.

Everything that a branch may leave out is decided here, and from nothing but the body, the session id and the ritual's
own definition, so that a repeated submission yields the same command and is recognised by its digest. Nodes may have
other rituals, or other versions of them: what is known already is a repeat, and takes what it left out from there.
"""

import difflib
import hashlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from consensus.state.commands import BranchSpec, SubmitSession
from consensus.state.limits import (
    ATTEMPTS_MAX,
    BRANCHES_PER_SESSION_MAX,
    COMMAND_BYTES_MAX,
    CONCURRENCY_MAX,
    JSON_DEPTH_MAX,
    PARAMETERS_BYTES_MAX,
    PRIORITY_MAX,
    TASK_BYTES_MAX,
    THOUGHT_BYTES_MAX,
)
from consensus.state.rows import Branch, Placement
from node.service.errors import ServiceError
from node.service.placing import PLACEMENT_KEYS, parse_placement
from storage.codec import check_json
from storage.errors import CodecError
from storage.ids import NodeId, SessionId

BODY_BYTES_MAX: Final = COMMAND_BYTES_MAX
"""A submission must fit into one command of the log."""
TIMEOUT_S_MAX: Final = 86_400.0
"""Of one attempt: a day. Longer work should be split, or a lost node costs more than a day."""
TIMEOUT_S_DEFAULT: Final = 300.0
ATTEMPTS_DEFAULT: Final = 3
CONSOLIDATION_DEFAULT: Final = "consolidate"

_SESSION_KEYS: Final = (
    "id", "thought", "main_session_id", "branches", "consolidation", "ritual", "timeout_s", "attempts_max", "priority",
    "concurrency", "ritual_concurrency", "speculation", *PLACEMENT_KEYS,
)  # fmt: skip
_BRANCH_KEYS: Final = ("ritual", "task", "parameters", "seed", "timeout_s", "attempts_max", *PLACEMENT_KEYS)
_ID_SPACE: Final = uuid.UUID("6ad3f5c4-90c0-5c6e-9f1e-0a6f8a9d6c11")
"""Name space of session ids that are hashed from idempotency keys."""


class Checkable(Protocol):
    """What a submission needs to know about a ritual."""

    @property
    def timeout_s(self) -> float | None: ...
    def check(self, parameters: Mapping[str, Any]) -> str | None:
        """Why the ritual does not accept these parameters, for a person; None if it does."""
        ...


@dataclass(frozen=True, slots=True)
class Submission:
    command: SubmitSession
    had_id: bool
    """The caller chose the id (in the body or by idempotency key), so that a repeat is meant to be recognised."""


def decode_body(body: bytes) -> Any:
    """JSON to plain values. Raises `ServiceError`: `too_large`, `malformed_json` (with the position)."""
    if len(body) > BODY_BYTES_MAX:
        raise too_large(len(body))
    if not body.strip():
        raise ServiceError("malformed_json", "The body is empty.", "Send a JSON object.", position=0)
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        text = str(error).removeprefix("JSON is malformed: ")
        position = text.rpartition("(byte ")[2].rstrip(")")
        values = {"position": int(position)} if position.isdigit() else {}
        raise ServiceError(
            "malformed_json", f"The body is not JSON: {text}.", "Check it with `jq .`.", **values
        ) from None
    except UnicodeDecodeError as error:
        raise ServiceError(
            "malformed_json", f"The body is not UTF-8 (byte {error.start}).", "Send UTF-8.", position=error.start
        ) from None
    except RecursionError:
        raise ServiceError(
            "malformed_json", "The body is nested too deeply.", f"Nest at most {JSON_DEPTH_MAX} levels."
        ) from None


def too_large(size: int | None) -> ServiceError:
    found = f"The body has {size:,} bytes" if size is not None else "The body is too large"
    return ServiceError(
        "too_large",
        f"{found}; at most {BODY_BYTES_MAX:,} are accepted.",
        "Split the branches over several sessions with the same main_session_id, or let rituals read large inputs "
        "from files and pass their names as parameters.",
        bytes_max=BODY_BYTES_MAX,
    )


def session_id_of(key: str) -> SessionId:
    """A session id from an idempotency key: a UUID is taken as it is, any other text is hashed to one."""
    try:
        return SessionId(str(uuid.UUID(key)))
    except ValueError:
        return SessionId(str(uuid.uuid5(_ID_SPACE, key)))


def parse_submission(
    document: Any,
    *,
    key: str | None,
    fresh_id: SessionId,
    find_ritual: Callable[[str], Checkable | None],
    offered: Callable[[], frozenset[str]],
    submitted_by: NodeId,
    now_ms: int,
    earlier: Callable[[SessionId], Mapping[int, Branch]] = lambda session_id: {},
) -> Submission:
    """Checks a decoded body and fills in what it leaves out.

    `find_ritual` knows this node's rituals; `offered` names all that any member offers (asked only for one that is
    not known here): those are accepted with their parameters unchecked. `earlier` answers the branches of a session,
    by index, if it is known already. Raises `ServiceError`: `unknown_key`, `invalid_session`, `unknown_ritual`,
    `invalid_parameters`.
    """
    if not isinstance(document, dict):
        raise _invalid("", f"must be an object, found {_kind(document)}")
    _check_keys(document, _SESSION_KEYS, "")
    session_id, had_id = _choose_id(document.get("id"), key, fresh_id)
    parent = document.get("main_session_id")
    reader = _BranchReader(
        session_id, earlier(session_id) if had_id else {}, find_ritual, offered, document.get("ritual"),
        _timeout(document, "", None), _attempts(document, "", ATTEMPTS_DEFAULT),
    )  # fmt: skip
    placement = parse_placement(document, "", None)
    raw_branches = document.get("branches")
    if not isinstance(raw_branches, list) or not raw_branches:
        raise _invalid("branches", "must be a list with at least one branch")
    if len(raw_branches) > BRANCHES_PER_SESSION_MAX:
        raise _invalid(
            "branches",
            f"has {len(raw_branches):,} entries; at most {BRANCHES_PER_SESSION_MAX:,} are accepted: split the session",
        )
    raw_consolidation = document.get("consolidation")
    if raw_consolidation is None:
        raw_consolidation = {}
    if isinstance(raw_consolidation, dict):
        raw_consolidation = {"ritual": CONSOLIDATION_DEFAULT, "task": "consolidate", **raw_consolidation}
    branches = [reader.read(raw, index, f"branches[{index}]", placement) for index, raw in enumerate(raw_branches)]
    command = SubmitSession(
        session_id=session_id,
        thought=_text(document, "thought", "", THOUGHT_BYTES_MAX),
        main_session_id=None if parent is None else SessionId(_uuid(parent, "main_session_id")),
        branches=branches,
        consolidation=reader.read(raw_consolidation, len(raw_branches), "consolidation", None),
        submitted_by=submitted_by,
        at_ms=now_ms,
        priority=_whole(document, "priority", -PRIORITY_MAX, PRIORITY_MAX) or 0,
        concurrency=_whole(document, "concurrency", 1, CONCURRENCY_MAX),
        ritual_concurrency=_ritual_concurrency(document, branches),
        speculation=_flag(document, "speculation", default=True),
    )
    return Submission(command, had_id)


class _BranchReader:
    def __init__(
        self,
        session_id: SessionId,
        earlier: Mapping[int, Branch],
        find_ritual: Callable[[str], Checkable | None],
        offered: Callable[[], frozenset[str]],
        ritual: object,
        timeout_ms: int | None,
        attempts_max: int,
    ) -> None:
        self._session_id = session_id
        self._earlier = earlier
        self._find = find_ritual
        self._offered = offered
        self._ritual = ritual
        self._timeout_ms = timeout_ms
        self._attempts_max = attempts_max

    def read(self, raw: object, index: int, where: str, placement: Placement | None) -> BranchSpec:
        """`placement` is that of the session."""
        if not isinstance(raw, dict):
            raise _invalid(where, f"must be an object, found {_kind(raw)}")
        _check_keys(raw, _BRANCH_KEYS, where)
        name = raw.get("ritual", self._ritual)
        if name is None:
            raise _invalid(f"{where}.ritual", "is missing: name it here or once at the top of the session")
        if not isinstance(name, str):
            raise _invalid(f"{where}.ritual", f"must be text, found {_kind(name)}")
        parameters = raw.get("parameters", {})
        if not isinstance(parameters, dict):
            raise _invalid(f"{where}.parameters", f"must be an object, found {_kind(parameters)}")
        try:
            check_json(parameters, PARAMETERS_BYTES_MAX, JSON_DEPTH_MAX)
        except CodecError as error:
            raise _invalid(f"{where}.parameters", str(error)) from None
        ritual, before = self._find(name), self._earlier.get(index)
        if ritual is None and before is None and name not in self._offered():
            raise self._unknown_ritual(name, where)
        problem = None if ritual is None or before is not None else ritual.check(parameters)
        if problem is not None:
            raise ServiceError(
                "invalid_parameters", f"{where}: ritual {name!r} does not accept these parameters: {problem}",
                f"See GET /v1/rituals/{name}.", at=f"{where}.parameters", ritual=name,
            )  # fmt: skip
        default_s = (ritual.timeout_s if ritual is not None else None) or TIMEOUT_S_DEFAULT
        default_ms = max(1, int(default_s * 1000)) if before is None else before.timeout_ms
        timeout_ms = _timeout(raw, where, self._timeout_ms)
        return BranchSpec(
            ritual=name,
            task=_text(raw, "task", where, TASK_BYTES_MAX),
            parameters=parameters,
            seed=self._seed(raw, index, where),
            timeout_ms=default_ms if timeout_ms is None else timeout_ms,
            attempts_max=_attempts(raw, where, self._attempts_max),
            placement=parse_placement(raw, where, placement),
        )

    def _seed(self, raw: Mapping[str, object], index: int, where: str) -> int:
        seed = raw.get("seed")
        if seed is None:  # from the id alone, so that a repeated submission is the same submission
            digest = hashlib.blake2b(f"{self._session_id}/{index}".encode(), digest_size=8).digest()
            return int.from_bytes(digest, "big") >> 11  # 53 bits: survives readers that know only doubles
        if type(seed) is not int or not 0 <= seed < 1 << 63:
            raise _invalid(f"{where}.seed", "must be a whole number from 0 to 2^63 - 1")
        return seed

    def _unknown_ritual(self, name: str, where: str) -> ServiceError:
        near = difflib.get_close_matches(name, sorted(self._offered()), n=1)
        fix = f"Did you mean {near[0]!r}? " if near else ""
        return ServiceError(
            "unknown_ritual", f"{where}: no member of the mesh offers the ritual {name!r}.",
            f"{fix}See GET /v1/rituals.", at=f"{where}.ritual", nearest=near[0] if near else None,
        )  # fmt: skip


def _choose_id(raw: object, key: str | None, fresh_id: SessionId) -> tuple[SessionId, bool]:
    from_key = None if key is None else session_id_of(key)
    if raw is None:
        return (fresh_id, False) if from_key is None else (from_key, True)
    chosen = SessionId(_uuid(raw, "id"))
    if from_key is not None and from_key != chosen:
        raise _invalid("id", "differs from the Idempotency-Key: send one of the two, or the same UUID in both")
    return chosen, True


def _check_keys(document: Mapping[str, object], allowed: tuple[str, ...], where: str) -> None:
    for name in document:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
            at = f"{where}.{name}" if where else name
            raise ServiceError(
                "unknown_key", f"{at[:200]}: there is no such key.",
                (f"Did you mean {near[0]!r}? " if near else "") + f"Allowed: {', '.join(allowed)}.",
                at=at[:200], nearest=near[0] if near else None,
            )  # fmt: skip


def _text(document: Mapping[str, object], name: str, where: str, bytes_max: int) -> str:
    value = document.get(name)
    at = f"{where}.{name}" if where else name
    if value is None:
        raise _invalid(at, "is missing: it must be text")
    if not isinstance(value, str):
        raise _invalid(at, f"must be text, found {_kind(value)}")
    if not value.strip():
        raise _invalid(at, "must not be empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise _invalid(at, "holds half of a surrogate pair, which is not text") from None
    if size > bytes_max:
        raise _invalid(at, f"is longer than {bytes_max:,} bytes: put large inputs into files that rituals read")
    return value


def _uuid(value: object, at: str) -> str:
    if isinstance(value, str):
        try:
            return str(uuid.UUID(value))
        except ValueError:
            pass
    raise _invalid(at, "must be a UUID, such as 5f0c7c1e-6f5e-4a57-9d0e-8f2f0c1b2a3d")


def _timeout(document: Mapping[str, object], where: str, default_ms: int | None) -> int | None:
    value = document.get("timeout_s")
    if value is None:
        return default_ms
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value <= TIMEOUT_S_MAX:
        at = f"{where}.timeout_s" if where else "timeout_s"
        raise _invalid(at, f"must be a number of seconds from 0.001 to {TIMEOUT_S_MAX:,.0f}")
    return int(value * 1000)


def _attempts(document: Mapping[str, object], where: str, default: int) -> int:
    value = document.get("attempts_max")
    if value is None:
        return default
    if type(value) is not int or not 1 <= value <= ATTEMPTS_MAX:
        at = f"{where}.attempts_max" if where else "attempts_max"
        raise _invalid(at, f"must be a whole number from 1 to {ATTEMPTS_MAX}")
    return value


def _whole(document: Mapping[str, object], name: str, least: int, most: int) -> int | None:
    value = document.get(name)
    if value is not None and (type(value) is not int or not least <= value <= most):
        raise _invalid(name, f"must be a whole number from {least} to {most:,}")
    return value if type(value) is int else None


def _ritual_concurrency(document: Mapping[str, object], branches: list[BranchSpec]) -> dict[str, int]:
    given = document.get("ritual_concurrency")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _invalid("ritual_concurrency", 'must be an object of limits, such as {"echo": 2}')
    rituals = {spec.ritual for spec in branches}
    for ritual, limit in given.items():
        at = f"ritual_concurrency.{ritual[:80]}"
        if ritual not in rituals:
            raise _invalid(at, "is the ritual of none of its branches")
        if type(limit) is not int or not 1 <= limit <= CONCURRENCY_MAX:
            raise _invalid(at, f"must be a whole number from 1 to {CONCURRENCY_MAX:,}")
    return given


def _flag(document: Mapping[str, object], name: str, *, default: bool) -> bool:
    value = document.get(name, default)
    if not isinstance(value, bool):
        raise _invalid(name, f"must be true or false, found {_kind(value)}")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "something else")


def _invalid(at: str, message: str) -> ServiceError:
    return ServiceError(
        "invalid_session", f"{at or 'The body'}: {message}." if at else f"The body {message}.",
        "See GET /openapi.json, schema SessionSubmission.", at=at,
    )  # fmt: skip
