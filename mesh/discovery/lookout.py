"""Looks for nodes by multicast, in a process of its own: `python -m mesh.discovery.lookout SETTINGS`.

For a node that needs it only until it has found a parent: zeroconf would stay in its memory for good. Writes a JSON
line for every hint, and ends when its standard input does, that is, with whoever has started it.
"""

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from mesh.discovery.lan import LanDiscovery
from mesh.settings import MeshSettings
from storage.ids import NodeId


class _Teller:
    """What discovery works for, and its logger: all of it goes to standard output."""

    port = 0

    def __init__(self, settings: MeshSettings) -> None:
        self.settings = settings
        self.tier = settings.tier
        self.node_id = NodeId("")

    def add_hint(self, source: str, node_id: NodeId, addresses: tuple[str, ...], name: str = "") -> bool:
        self._tell(found=node_id, addresses=addresses)
        return True

    def is_up(self, peer: NodeId) -> bool:
        return False

    def note_diary(self, source: str, event: str, detail: str, interface: str = "") -> None:
        """Nobody reads it here."""

    def debug(self, event: str, **fields: Any) -> None:
        """Nor this."""

    def info(self, event: str, **fields: Any) -> None:
        """Nor this."""

    def warning(self, event: str, **fields: Any) -> None:
        self._tell(trouble=f"{event}: {fields.get('detail', '')}")

    error = warning

    def _tell(self, **fields: Any) -> None:
        print(json.dumps(fields), flush=True)


async def _look(settings: MeshSettings) -> None:
    teller = _Teller(settings)
    lan = LanDiscovery(teller, teller, announces=False)
    looking = asyncio.create_task(lan.run())
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.buffer.read))
    await asyncio.wait({looking, ended}, return_when=asyncio.FIRST_COMPLETED)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    await lan.stop()


def main() -> None:
    given = json.loads(sys.argv[1])
    settings = MeshSettings(
        mesh_name=given["mesh_name"], node_name="", data_dir=Path(), bind_host="auto", interfaces=given["interfaces"]
    )
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        asyncio.run(_look(settings))


if __name__ == "__main__":
    main()
