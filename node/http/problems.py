"""Errors as `application/problem+json` (RFC 9457): every one has a stable `code`, the cause and the fix."""

from collections.abc import Mapping
from typing import Final

import msgspec

from node.service.errors import CODES, ServiceError

CONTENT_TYPE: Final = "application/problem+json"

FACE_CODES: Final[dict[str, tuple[int, str]]] = {
    "bad_request": (400, "The request is not HTTP as this node understands it"),
    "body_timeout": (408, "The body did not arrive in time"),
    "foreign_host": (403, "The request is meant for another host"),
    "foreign_origin": (403, "The request comes from a web page of another origin"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "unauthorized": (401, "A valid token is needed"),
    "unknown_route": (404, "There is nothing at this path"),
    "unsupported_media_type": (415, "The body must be application/json"),
}
"""Codes that only HTTP knows: status and title."""

STATUS_OF: Final[dict[str, int]] = {
    "ambiguous_node": 409,
    "change_refused": 409,
    "disk_full": 507,
    "disk_low": 507,
    "events_gone": 410,
    "forming": 503,
    "internal": 500,
    "invalid_argument": 400,
    "invalid_parameters": 422,
    "invalid_session": 422,
    "malformed_json": 400,
    "newer_command": 409,
    "no_insight": 404,
    "no_leader": 503,
    "overloaded": 503,
    "quarantined": 503,
    "refused": 409,
    "replica_stopped": 503,
    "session_exists": 409,
    "stopping": 503,
    "timeout": 504,
    "too_large": 413,
    "too_stale": 503,
    "too_many_sessions": 429,
    "unavailable": 503,
    "unknown_branch": 404,
    "unknown_key": 422,
    "unknown_node": 404,
    "unknown_ritual": 422,
    "unknown_session": 404,
}
"""Codes of `node.service.errors` and their HTTP status; a test holds the two tables together."""

RETRY_AFTER_S: Final = {
    "no_leader": 1,
    "forming": 2,
    "overloaded": 1,
    "too_many_sessions": 5,
    "unavailable": 1,
    "stopping": 2,
    "too_stale": 1,
}


class Problem(Exception):
    """An error of the face itself, or a use-case's error that means another status here."""

    def __init__(
        self, code: str, detail: str, fix: str = "", *, status: int | None = None,
        headers: Mapping[str, str] | None = None, values: Mapping[str, object] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(detail)
        assert code in FACE_CODES or code in CODES, f"unknown code {code!r}"
        self.code = code
        self.detail = detail
        self.fix = fix
        self.status = status if status is not None else status_of(code)
        self.headers = dict(headers or {})
        self.values = dict(values or {})

    @classmethod
    def of(cls, error: ServiceError, *, status: int | None = None) -> "Problem":
        return cls(error.code, error.detail, error.fix, status=status, values=error.values)

    def document(self) -> dict[str, object]:
        title = FACE_CODES[self.code][1] if self.code in FACE_CODES else CODES[self.code]
        own: dict[str, object] = {
            "type": f"urn:meshnode:problem:{self.code}",
            "title": title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "fix": self.fix,
        }
        return {**self.values, **own}

    def rendered(self, *, pretty: bool = False) -> tuple[bytes, dict[str, str]]:
        """Body and headers."""
        body = msgspec.json.encode(self.document(), enc_hook=str)
        headers = {"Content-Type": CONTENT_TYPE, **self.headers, "Cache-Control": "no-store"}
        if self.code in RETRY_AFTER_S:
            headers["Retry-After"] = str(RETRY_AFTER_S[self.code])
        return msgspec.json.format(body, indent=2) + b"\n" if pretty else body, headers


def status_of(code: str) -> int:
    return FACE_CODES[code][0] if code in FACE_CODES else STATUS_OF[code]
