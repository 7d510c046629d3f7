"""`GET /v1/backup`: all sessions, branches and insights as one file, taken while the node works.

The file proves itself whole (`storage/dump.py`); a stream that breaks off is refused by whoever reads it, and its
connection is cut rather than ended, so that HTTP clients notice too.
"""

import asyncio

import structlog
from aiohttp import web

from node.http import limits
from node.http.arguments import Arguments
from node.http.keys import SERVICE
from node.http.sse import bound_buffers

log = structlog.get_logger()

CONTENT_TYPE = "application/vnd.meshnode.backup"


async def get_backup(request: web.Request) -> web.StreamResponse:
    Arguments(request.query, ())
    service = request.app[SERVICE]
    async with service.backup() as backup:
        header = backup.header
        name = f"{service.facts.mesh_name}-{header.index}.backup"
        response = web.StreamResponse(
            headers={"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="{_safe(name)}"'}
        )
        response.content_type = CONTENT_TYPE
        await response.prepare(request)
        if request.transport is not None:
            bound_buffers(request.transport)
        size = 0
        try:
            async for piece in backup.pieces():
                async with asyncio.timeout(limits.WRITE_S):
                    await response.write(piece)
                size += len(piece)
            await response.write_eof()
        except BaseException as error:
            log.warning("backup_broken_off", index=header.index, bytes=size, reason=str(error) or type(error).__name__)
            if request.transport is not None:
                request.transport.abort()
            if isinstance(error, TimeoutError):
                return response
            raise
    log.info("backup_taken", index=header.index, term=header.term, rows=header.rows, bytes=size)
    return response


def _safe(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)
