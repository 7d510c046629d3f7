"""Discovery by multicast, without the network."""

import asyncio
import errno
import socket
from pathlib import Path

import pytest
from zeroconf import NotRunningException, ServiceInfo
from zeroconf._cache import DNSCache

from mesh.discovery.interfaces import Interface
from mesh.discovery.lan import SERVICE_TYPE, LanDiscovery
from mesh.settings import MeshSettings, mesh_name_hash
from storage.ids import NodeId
from tests.unit.mesh.support import KeptLog, site, until


class User:
    """Whom discovery works for."""

    node_id = NodeId("a" * 26)
    tier = "core"
    port = 7781

    def __init__(self, settings: MeshSettings) -> None:
        self.settings = settings
        self.diary: list[tuple[str, str]] = []
        self.hints: list[tuple[NodeId, tuple[str, ...]]] = []
        self.links: set[NodeId] = set()

    def is_up(self, peer: NodeId) -> bool:
        return peer in self.links

    def add_hint(self, source: str, node_id: NodeId, addresses: tuple[str, ...], name: str = "") -> bool:
        self.hints.append((node_id, addresses))
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


class Multicast:
    """In place of zeroconf: its cache, and nothing on the network."""

    made: list["Multicast"]

    def __init__(self, **options: object) -> None:
        self.zeroconf = self
        self.cache = DNSCache()
        self.announced = 0
        self.made.append(self)

    async def async_wait_for_start(self) -> None: ...

    async def async_register_service(self, info: object, **options: object) -> None:
        self.announced += 1

    def generate_unregister_all_services(self) -> None: ...

    async def async_close(self) -> None:
        for _ in range(50):  # as long as it takes to look again
            await asyncio.sleep(0.001)

    def hear(self, node_id: str) -> None:
        info = ServiceInfo(
            SERVICE_TYPE,
            f"{node_id}.{SERVICE_TYPE}",
            port=7781,
            addresses=[socket.inet_aton("10.0.0.9")],
            server=f"meshnode-{node_id}.local.",
            properties={"mesh": mesh_name_hash("home"), "id": node_id},
        )
        records = [info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()]
        self.cache.async_add_records(records)


@pytest.fixture
def multicast(monkeypatch: pytest.MonkeyPatch) -> type[Multicast]:
    class Cancelled:
        async def async_cancel(self) -> None: ...

    Multicast.made = []
    monkeypatch.setattr("mesh.discovery.lan.AsyncZeroconf", Multicast)
    monkeypatch.setattr("mesh.discovery.lan.AsyncServiceBrowser", lambda *given, **options: Cancelled())
    monkeypatch.setattr("mesh.discovery.lan.read_interfaces", lambda: (Interface("lo", ("127.0.0.1",)),))
    monkeypatch.setattr("mesh.discovery.lan._RESCAN_S", 0.001)
    return Multicast


def test_who_is_announced_still_and_not_linked_is_heard_again(
    tmp_path: Path, multicast: type[Multicast], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.discovery.lan._REPEAT_S", 0.01)

    async def scenario() -> None:
        user = User(MeshSettings("home", "a", tmp_path, interfaces=["lo"]))
        user.links.add(NodeId("linked"))
        discovery = LanDiscovery(user, KeptLog())
        task = asyncio.create_task(discovery.run())
        await until(lambda: multicast.made and multicast.made[0].announced, "it does not start")
        for name in ("linked", "away", user.node_id):
            multicast.made[0].hear(name)
        await until(lambda: user.hints.count((NodeId("away"), ("10.0.0.9:7781",))) >= 3, "it is not repeated")
        assert {node_id for node_id, _ in user.hints} == {"away"}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await discovery.stop()

    asyncio.run(scenario())


def test_a_mesh_that_stops_announces_nothing_any_more(tmp_path: Path, multicast: type[Multicast]) -> None:
    async def scenario() -> None:
        async with site(tmp_path) as here:
            mesh = await here.start("a", zeroconf=True, interfaces=["lo"])
            await until(lambda: multicast.made and multicast.made[0].announced, "it is not announced")
            await mesh.stop()
            assert len(multicast.made) == 1

    asyncio.run(scenario())
