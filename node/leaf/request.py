"""HTTP/1.1 as far as a Leaf needs it: the head of a request, and that of an answer which it passes on. Pure.

Strict where leniency would let two readers of the same bytes see two requests: one `Content-Length`, no
`Transfer-Encoding`, no folded lines, no space before a colon (RFC 9112, sections 2.2, 5.1, 6.3). What is refused ends
the connection.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from node.leaf.limits import HEAD_BYTES_MAX, HEADERS_MAX

_LINE = re.compile(rb"([A-Z]{1,16}) (/[\x21\x22\x24-\x7e]{0,4095}) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?")

_OWN = frozenset({"authorization", "connection", "content-length", "expect", "host", "keep-alive", "origin", "upgrade"})
"""Headers that are between the client and the Leaf; the rest goes on to the parent."""


class Malformed(ValueError):
    """Not a request that a Leaf takes; `status` is the answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Headers(dict[str, str]):
    """By lower-case name; asked for in any case."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


@dataclass(frozen=True, slots=True)
class Request:
    """What the head of a request says."""

    method: str
    target: str
    headers: Mapping[str, str]
    body_bytes: int
    keeps_open: bool
    version: str
    """`1.0` or `1.1`."""

    @property
    def path(self) -> str:
        """As the parent reads it: the guard must judge what is routed there."""
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def can_read_body(self) -> bool:
        return self.body_bytes > 0

    def passed_on(self, body: bytes) -> bytes:
        """As the parent gets it."""
        lines = [f"{self.method} {self.target} HTTP/{self.version}", "host: parent", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items() if name not in _OWN]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def read_request(head: bytes) -> Request:
    """`head` ends with an empty line. Raises Malformed."""
    first, headers = _split(head)
    line = _LINE.fullmatch(first)
    if line is None:
        raise Malformed("the request line cannot be read")
    if "transfer-encoding" in headers:
        raise Malformed("send the body with Content-Length", 411)
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or len(length) > 12:
        raise Malformed("Content-Length is not a number")
    connection = headers.get("connection", "").lower()
    keeps_open = "close" not in connection and (line[3] == b"1" or "keep-alive" in connection)
    return Request(line[1].decode(), line[2].decode(), headers, int(length), keeps_open, f"1.{line[3].decode()}")


class Passage:
    """An answer on its way through: gives on what it is given, and knows when it is whole, if its head says how long it
    is. Otherwise it ends with the connection, and its head says so: only the client can see that it is whole, and must
    not send its next request after it."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._head: bytes | None = b""
        self._left: int | None = None

    @property
    def is_whole(self) -> bool:
        return self._head is None and self._left == 0

    def take(self, data: bytes) -> bytes:
        """What can go on now; the head goes when it is complete. Raises Malformed."""
        if self._head is None:
            body = data
        else:
            self._head += data
            end = self._head.find(b"\r\n\r\n") + 4
            if end < 4:
                if len(self._head) > HEAD_BYTES_MAX:
                    raise Malformed("the head of the answer does not end", 502)
                return b""
            data, body, self._head = self._head, self._head[end:], None
            self._left = self._length(data[:end])
            if self._left is None:
                data = data[: end - 2] + b"Connection: close\r\n" + data[end - 2 :]
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0:
                raise Malformed("the answer is longer than its head says", 502)
        return data

    def _length(self, head: bytes) -> int | None:
        first, headers = _split(head)
        status = _STATUS.fullmatch(first)
        if status is None:
            raise Malformed("the status line cannot be read", 502)
        if self._method == "HEAD" or status[1] in (b"204", b"304"):
            return 0
        length = headers.get("content-length", "")
        return int(length) if length.isascii() and length.isdigit() else None


def _split(head: bytes) -> tuple[bytes, Headers]:
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if len(lines) - 1 > HEADERS_MAX:
        raise Malformed(f"more than {HEADERS_MAX} headers", 431)
    headers = Headers()
    for line in lines[1:]:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise Malformed("a header cannot be read")
        name, value = match[1].decode().lower(), match[2].decode("latin-1")
        if name in headers and name in ("content-length", "host", "transfer-encoding"):
            raise Malformed(f"{name} twice")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return lines[0], headers
