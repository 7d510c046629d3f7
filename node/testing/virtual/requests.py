"""A client's HTTP request over the virtual network."""

import asyncio
import http.client
import io
import json
from typing import Any

from node.testing.harness import Answer


async def request(host: str, port: int, method: str, path: str, body: object, timeout_s: float) -> Answer:
    """Raises OSError (TimeoutError is one) or http.client.HTTPException."""
    content = b"" if body is None else json.dumps(body).encode()
    head = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Connection: close",
        f"Content-Length: {len(content)}",
        *(["Content-Type: application/json"] if content else []),
    ]
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write("\r\n".join([*head, "", ""]).encode() + content)
            answered = await reader.read()
        finally:
            writer.transport.abort()
    response = http.client.HTTPResponse(_Answered(answered), method=method)  # type: ignore[arg-type]
    response.begin()
    raw = response.read()
    is_json = "json" in response.headers.get("Content-Type", "")
    return Answer(response.status, json.loads(raw) if is_json else raw.decode(errors="replace"))


class _Answered:
    """As much of a socket as a response needs."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *arguments: Any) -> io.BytesIO:
        return io.BytesIO(self._data)
