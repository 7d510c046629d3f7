"""Reads query arguments: every one is checked, an unknown one is refused with the nearest that exists."""

import difflib
import re
from collections.abc import Mapping
from typing import Final, TypeVar, cast, get_args

from consensus.state.rows import SessionStatus
from node.service.errors import ServiceError
from node.service.paging import PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX
from node.service.readings import Level, Until, Wanted
from node.service.watching import WHOLE_INDEX, Cursor

_DURATION: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(ms|s|m)?")
_EVENT_ID: Final = re.compile(r"(\d{1,18})(?:\.(\d{1,9}))?")
_SCALE: Final = {None: 1.0, "s": 1.0, "ms": 0.001, "m": 60.0}

COMMON: Final = ("pretty",)

FRESHNESS: Final = ("level", "max_age_ms")
"""What every read takes."""

AGE_MS_MAX: Final = 7 * 24 * 3600 * 1000
"""A week: whoever allows more does not care."""

T = TypeVar("T", bound=str)


class Arguments:
    """The query of one request; `allowed` names what the route takes."""

    def __init__(self, query: Mapping[str, str], allowed: tuple[str, ...]) -> None:
        self._query = query
        for name in query:
            if name not in allowed and name not in COMMON:
                near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
                known = ", ".join(allowed) or "none"
                raise ServiceError(
                    "invalid_argument", f"There is no query argument {name[:80]!r} here.",
                    (f"Did you mean {near[0]!r}? " if near else "") + f"Allowed: {known}.",
                )  # fmt: skip

    def text(self, name: str) -> str | None:
        return self._query.get(name)

    def wanted(self) -> Wanted:
        level = cast(Level, self._one_of("level", get_args(Level)) or "stale")
        max_age_ms = self._whole("max_age_ms", 0, AGE_MS_MAX)
        if max_age_ms is not None and level != "stale":
            raise ServiceError(
                "invalid_argument", f"max_age_ms does not go with level={level}.", "Leave one of them out."
            )
        return Wanted(level, max_age_ms)

    def until(self) -> Until:
        return cast(Until, self._one_of("until", get_args(Until)) or "change")

    def status(self) -> SessionStatus | None:
        return cast(SessionStatus | None, self._one_of("status", get_args(SessionStatus)))

    def limit(self) -> int:
        return self._whole("limit", 1, PAGE_ROWS_MAX) or PAGE_ROWS_DEFAULT

    def rev(self) -> int | None:
        return self._whole("rev", 0, 1 << 62)

    def flag(self, name: str) -> bool:
        return self._one_of(name, ("0", "1", "true", "false")) in ("1", "true")

    def wait_s(self) -> float | None:
        text = self._query.get("wait")
        if text is None:
            return None
        match = _DURATION.fullmatch(text)
        if match is None:
            raise _invalid("wait", text, "a duration such as 30s or 500ms")
        return float(match[1]) * _SCALE[match[2]]

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> str | None:
        value = self._query.get(name)
        if value is not None and value not in allowed:
            raise _invalid(name, value, "one of " + ", ".join(allowed))
        return value

    def _whole(self, name: str, low: int, high: int) -> int | None:
        value = self._query.get(name)
        if value is None:
            return None
        if not value.isascii() or not value.isdigit() or len(value) > 19 or not low <= int(value) <= high:
            raise _invalid(name, value, f"a whole number from {low} to {high}")
        return int(value)


def parse_event_id(text: str, name: str) -> Cursor:
    """`index.position`, or `index` alone: everything of that index has been seen."""
    match = _EVENT_ID.fullmatch(text.strip())
    if match is None:
        raise _invalid(name, text, "an event id such as 1234.0, as the stream sent it")
    return int(match[1]), int(match[2]) if match[2] is not None else WHOLE_INDEX


def _invalid(name: str, value: str, allowed: str) -> ServiceError:
    return ServiceError("invalid_argument", f"{name}={value[:80]!r} is not allowed.", f"It must be {allowed}.")
