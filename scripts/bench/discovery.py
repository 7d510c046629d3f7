"""How soon nodes that begin to look at the same moment have all seen each other by zeroconf.

Each is a process of its own with the discovery of a daemon and nothing else, where root allows in a network namespace
of its own. All are loaded and wait for the same word; the time runs from that word (so it includes opening the sockets)
until the last of them has seen every other. Starting processes, TLS and agreement are measured elsewhere.
"""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.bench.report import Figure

NODES = 20
DEADLINE_S = 30.0


def measure(folder: Path, runs: int) -> list[Figure]:
    from tests.system.lan import Lan, unavailable_because

    lacking = unavailable_because()
    note = "namespaces" if lacking is None else f"loopback: {lacking}"
    figure = Figure(f"discovery, {NODES} nodes at once: until all have seen all", "s", "1.5", note=note)
    for run in range(runs):
        with contextlib.ExitStack() as stack:
            lan = stack.enter_context(Lan(NODES)) if lacking is None else None
            prefixes = [[] if lan is None else lan.prefix(place) for place in range(NODES)]
            nodes = stack.enter_context(_watching(prefixes, f"bench-{run}", "127.0.0.1" if lan is None else "auto"))
            for node in nodes:
                _line(node)  # it is loaded
            began = time.monotonic()
            for node in nodes:
                assert node.stdin is not None
                node.stdin.write("go\n")
                node.stdin.flush()
            figure.values.append(max(float(_line(node)) for node in nodes) - began)
    return [figure]


@contextlib.contextmanager
def _watching(prefixes: Sequence[Sequence[str]], mesh: str, bind: str) -> Iterator[list["subprocess.Popen[str]"]]:
    nodes = [
        subprocess.Popen(
            [*prefix, sys.executable, "-m", "scripts.bench.discovery", mesh, f"node-{place}", bind, str(len(prefixes))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for place, prefix in enumerate(prefixes)
    ]  # fmt: skip
    try:
        yield nodes
    finally:
        for node in nodes:
            node.kill()
            node.wait()
            for stream in (node.stdin, node.stdout):
                if stream is not None:
                    stream.close()


def _line(node: "subprocess.Popen[str]") -> str:
    assert node.stdout is not None
    line = node.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"a node has not seen all others within {DEADLINE_S:g} s")
    return line


class _Node:
    """Whom discovery works for, and its logger."""

    def __init__(self, mesh: str, name: str, bind: str, others: int) -> None:
        from mesh.settings import MeshSettings
        from storage.ids import NodeId

        self.settings = MeshSettings(mesh_name=mesh, node_name=name, data_dir=Path(), bind_host=bind)
        self.node_id = NodeId(name)
        self.tier = "core"
        self.port = 7781
        self.has_seen_all = asyncio.Event()
        self._seen: set[str] = set()
        self._others = others

    def add_hint(self, source: str, node_id: str, addresses: tuple[str, ...], name: str = "") -> bool:
        is_new = node_id not in self._seen
        self._seen.add(node_id)
        if len(self._seen) >= self._others:
            self.has_seen_all.set()
        return is_new

    def is_up(self, peer: str) -> bool:
        return False

    def note_diary(self, source: str, event: str, detail: str, interface: str = "") -> None:
        """Nobody reads it here."""

    def debug(self, event: str, **fields: Any) -> None:
        """Nor this."""

    info = warning = error = debug


async def _look(node: _Node) -> None:
    from mesh.discovery.lan import LanDiscovery

    print("loaded", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    discovery = LanDiscovery(node, node)
    looking = asyncio.create_task(discovery.run())
    async with asyncio.timeout(DEADLINE_S):
        await node.has_seen_all.wait()
    print(time.monotonic(), flush=True)
    await asyncio.to_thread(sys.stdin.readline)  # it answers the others until it is ended
    looking.cancel()


def main() -> None:
    mesh, name, bind, count = sys.argv[1:]
    asyncio.run(_look(_Node(mesh, name, bind, int(count) - 1)))


if __name__ == "__main__":
    main()
