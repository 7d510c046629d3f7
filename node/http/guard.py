"""Who may ask: a bearer token if one is configured, and a wall against web pages that talk to a loopback port.

A node on loopback without a token trusts every local process, but a browser runs pages of the whole world on the same
machine. Two attacks are refused: DNS rebinding (a page's own host name is made to resolve to 127.0.0.1: the `Host`
header betrays it) and cross-site requests (the `Origin` header and the content type betray them).
"""

import hashlib
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from node.config import is_loopback
from node.http.problems import Problem

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""Answered without a token: supervisors and load balancers have none, and they say nothing secret."""

COMMANDING_PATHS: Final = frozenset({"/v1/backup"})
"""Asked for with GET, but as costly as a command: a foreign page must not even set them off."""

TOKEN_CHARACTERS_MIN: Final = 16
TOKEN_FILE_BYTES_MAX: Final = 4_096

_FORM_TYPES: Final = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class HttpConfigError(Exception):
    """The HTTP interface cannot be opened as configured. The message says what to change. Codes: `token_file`,
    `exposed`, `bind_failed`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def load_token(path: Path) -> str:
    """The first line of the file. Raises `HttpConfigError`."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(TOKEN_FILE_BYTES_MAX).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise HttpConfigError("token_file", f"http.token_file: cannot read {path}: {error}") from error
    token = text.partition("\n")[0].strip()
    if mode & 0o077:
        raise HttpConfigError(
            "token_file", f"http.token_file: {path} can be read by others (mode {mode:o}): run chmod 600 {path}"
        )
    if len(token) < TOKEN_CHARACTERS_MIN or not token.isascii() or not token.isprintable() or " " in token:
        raise HttpConfigError(
            "token_file",
            f"http.token_file: the first line of {path} must be a token of at least {TOKEN_CHARACTERS_MIN} printable "
            f"ASCII characters without spaces; make one with: openssl rand -hex 32 > {path}",
        )
    return token


class Asked(Protocol):
    """Of a request, what the guard looks at: `aiohttp.web.Request`, and that of a Leaf."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def can_read_body(self) -> bool: ...


class Guard:
    """Decides about requests before any route sees them. Raises `HttpConfigError` if it would leave the door open."""

    def __init__(self, bind: str, token: str | None, allow_unauthenticated: bool) -> None:
        if token is None and not is_loopback(bind) and not allow_unauthenticated:
            raise HttpConfigError(
                "exposed",
                f"http.bind = {bind!r} is reachable from other machines; whoever reaches it could submit and cancel "
                "work: set http.token_file, or http.allow_unauthenticated = true if the network is trusted",
            )
        self._digest = None if token is None else _digest(token)
        self._hosts = frozenset({*_LOCAL_NAMES, bind.lower()}) if token is None and is_loopback(bind) else None

    def check(self, request: Asked) -> None:
        """Raises `Problem`: `unauthorized`, `foreign_host`, `foreign_origin`, `unsupported_media_type`."""
        if self._hosts is not None:
            self._check_host(request)
        if self._digest is not None and request.path not in OPEN_PATHS:
            self._check_token(request)
        if request.method == "POST" or request.path in COMMANDING_PATHS:
            self._check_origin(request)
        if request.method == "POST":
            _check_content_type(request)

    def _check_host(self, request: Asked) -> None:
        assert self._hosts is not None
        host = _host_name(request.headers.get("Host", ""))
        if host not in self._hosts:
            raise Problem(
                "foreign_host", f"This node listens on loopback and does not answer for the host {host[:100]!r}.",
                "Use http://127.0.0.1 or http://localhost; to serve other names configure http.token_file.",
            )  # fmt: skip

    def _check_token(self, request: Asked) -> None:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        assert self._digest is not None
        # digests of equal length are compared, so that neither content nor length of the token shows in the time
        if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(given.strip()), self._digest):
            raise Problem(
                "unauthorized", "The request carries no valid token.",
                "Send `Authorization: Bearer TOKEN` with the first line of the node's http.token_file.",
                headers={"WWW-Authenticate": 'Bearer realm="meshnode"'},
            )  # fmt: skip

    def _check_origin(self, request: Asked) -> None:
        origin = request.headers.get("Origin")
        if origin is None or self._digest is not None:  # a token is not sent by a browser on its own
            return
        try:
            netloc = urlsplit(origin).netloc
        except ValueError:
            netloc = ""
        if not netloc or netloc.lower() != request.headers.get("Host", "").lower():
            raise Problem(
                "foreign_origin", f"A web page of {origin[:100]!r} may not command this node.",
                "Call the node from its own pages or from a program.",
            )  # fmt: skip


def _check_content_type(request: Asked) -> None:
    """JSON for a body. An empty one may have any type but those that a form of a foreign page can send."""
    given = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if given == "application/json" or (not request.can_read_body and given not in _FORM_TYPES):
        return
    raise Problem(
        "unsupported_media_type",
        f"The body has the type {(given or 'none')[:100]!r}.",
        "Send JSON with the header `Content-Type: application/json`.",
    )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _host_name(host: str) -> str:
    """The name in a `Host` header, without port and brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
