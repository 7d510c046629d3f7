"""Multicast, as long as no parent is known: starts `mesh.discovery.lookout` and listens to it. A process of its own,
because zeroconf would cost this one a quarter of its memory for something that is needed once in its life."""

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from typing import Literal

import structlog

from node.leaf.limits import MULTICAST_PAUSE_S
from node.rituals.registry import child_environment
from storage.ids import NodeId

LINE_BYTES_MAX = 16 * 1024

log = structlog.get_logger()


class Multicast:
    """`is_wanted`: whether the configuration allows it. `on_found` is set by whoever looks for a parent."""

    def __init__(self, mesh_name: str, interfaces: Literal["auto"] | list[str], *, is_wanted: bool) -> None:
        self.on_found: Callable[[NodeId, tuple[str, ...]], None] = lambda node_id, addresses: None
        self.is_wanted = is_wanted
        self._settings = json.dumps({"mesh_name": mesh_name, "interfaces": interfaces})
        self._task: asyncio.Task[None] | None = None

    @property
    def is_looking(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        if self.is_wanted and not self.is_looking:
            self._task = asyncio.create_task(self._run(), name="multicast")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        self.stop()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        log.info("looking_by_multicast")
        while True:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", "mesh.discovery.lookout", self._settings,
                    stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=LINE_BYTES_MAX, env=child_environment(),
                )  # fmt: skip
            except OSError as error:
                log.warning("cannot_look_by_multicast", reason=str(error))
            else:
                try:
                    await self._listen(process)
                finally:
                    await asyncio.shield(_end(process))
            await asyncio.sleep(MULTICAST_PAUSE_S)

    async def _listen(self, process: Process) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError):  # a line too long: not one of ours
            while line := await process.stdout.readline():
                said = json.loads(line)
                if "found" in said:
                    self.on_found(NodeId(str(said["found"])), tuple(str(item) for item in said["addresses"]))
                else:
                    log.warning("multicast_trouble", detail=said.get("trouble"))


async def _end(process: Process) -> None:
    """It ends with its standard input; killed if it does not."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(1.0):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
