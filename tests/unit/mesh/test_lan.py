"""Discovery by multicast, without the network."""

import asyncio
import errno
from pathlib import Path

import pytest
from zeroconf import NotRunningException

from mesh.discovery.interfaces import Interface
from mesh.discovery.lan import LanDiscovery
from mesh.settings import MeshSettings
from storage.ids import NodeId
from tests.unit.mesh.support import KeptLog, until


class User:
    """Whom discovery works for."""

    node_id = NodeId("a" * 26)
    tier = "core"
    port = 7781

    def __init__(self, settings: MeshSettings) -> None:
        self.settings = settings
        self.diary: list[tuple[str, str]] = []

    def add_hint(self, source: str, node_id: NodeId, addresses: tuple[str, ...], name: str = "") -> bool:
        return True

    def note_diary(self, source: str, event: str, detail: str, interface: str = "") -> None:
        self.diary.append((event, detail))


def test_what_fails_is_tried_again_and_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def look() -> tuple[Interface, ...]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise OSError(errno.EMFILE, "too many open files")
        return (Interface("lo", ("127.0.0.1",)), Interface("docker0", ("172.17.0.1",)))

    class Slow:
        def __init__(self, **options: object) -> None:
            raise NotRunningException  # as when the loop is too busy for it to begin

    monkeypatch.setattr("mesh.discovery.lan.read_interfaces", look)
    monkeypatch.setattr("mesh.discovery.lan.AsyncZeroconf", Slow)
    monkeypatch.setattr("mesh.discovery.lan._RESCAN_S", 0.01)

    async def scenario() -> None:
        user, log = User(MeshSettings("home", "a", tmp_path, interfaces=["lo"])), KeptLog()
        discovery = LanDiscovery(user, log)
        task = asyncio.create_task(discovery.run())
        await until(lambda: looks >= 4 or task.done(), "discovery does not look again")
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await discovery.stop()
        failed = [detail for event, detail in user.diary if event == "failed"]
        assert "too many open files" in failed[0]
        assert "NotRunningException" in failed[1]
        assert [event for _, event, _ in log.lines].count("zeroconf_failed") == 1
        assert [event for event, _ in user.diary].count("skipped") == 1

    asyncio.run(scenario())
