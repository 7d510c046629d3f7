"""Zeroconf: announces this node on the LAN and hints at the others it hears. Imported lazily: it costs 140 ms.

Everything heard here is from strangers: at most it makes this node dial an address, bounded by the address book. The
TXT record holds no secret: a hash of the mesh name (to ignore other meshes without dialling them), node id, tier, port.
mDNS never reports a death; links do. Names are unique (they are node ids), so the probing of RFC 6762 section 8.1 is
left out (`cooperating_responders`): a node is seen in milliseconds instead of 1.2 s.
"""

import asyncio
import contextlib
import random
import socket
from collections.abc import Sequence
from typing import Literal, Protocol

from zeroconf import DNSQuestionType, ServiceStateChange, Zeroconf
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from mesh.discovery.interfaces import Interface, choose, read_interfaces
from mesh.limits import PEERS_KNOWN_MAX
from mesh.links.book import join_address
from mesh.settings import MeshSettings, mesh_name_hash
from mesh.supervise import Logger, Supervisor
from storage.ids import NodeId

SERVICE_TYPE = "_meshnode._tcp.local."
TXT_VERSION = "1"

_RESCAN_S = 5.0  # how soon a new address or cable is noticed; one ifaddr call, 0.3 ms
_REPEAT_S = 60.0  # the browser speaks of a node once; hints end (`mesh.limits.HEARD_LASTS_S`) or lose their place
_RESOLVE_MS = 3000
_RESOLVING_MAX = 32


class LanUser(Protocol):
    """Whom discovery works for (`Mesh`)."""

    node_id: NodeId
    settings: MeshSettings
    tier: str

    @property
    def port(self) -> int: ...
    def is_up(self, peer: NodeId) -> bool: ...
    def add_hint(self, source: str, node_id: NodeId, addresses: tuple[str, ...], name: str = "") -> bool: ...
    def note_diary(self, source: str, event: str, detail: str, interface: str = "") -> None: ...


class LanDiscovery:
    """One announcement and one browser, on the chosen interfaces, renewed when addresses change."""

    def __init__(self, user: LanUser, log: Logger, *, announces: bool = True) -> None:
        """`announces`: otherwise it only looks."""
        self._announces = announces
        self._user = user
        self._log = log
        self._tasks = Supervisor(log)
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._info: AsyncServiceInfo | None = None
        self._interfaces: tuple[Interface, ...] = ()
        self._mesh_hash = mesh_name_hash(user.settings.mesh_name)
        self._resolving: set[str] = set()
        self._skipped: set[str] = set()
        """Interfaces that were passed over at the last look."""
        self._warned: set[str] = set()

    async def run(self) -> None:
        """Until cancelled: keep the announcement in step with the machine's addresses. What fails is tried again."""
        loop = asyncio.get_running_loop()
        repeat_at = loop.time() + _REPEAT_S
        try:
            while True:
                try:
                    interfaces = await self._scan()
                    if interfaces != self._interfaces:
                        await self._apply(interfaces)
                        self._interfaces = interfaces
                except (OSError, ZeroconfError) as error:
                    await self._close()
                    reason = str(error) or type(error).__name__
                    self._note("failed", f"{reason}: discovery needs UDP port 5353; seeds work without it")
                    self._warn("zeroconf_failed", reason)
                if loop.time() >= repeat_at:
                    repeat_at = loop.time() + _REPEAT_S
                    self._repeat()
                await asyncio.sleep(_RESCAN_S)
        finally:
            await asyncio.shield(self._close())

    async def stop(self) -> None:
        """Once `run` has ended: leave nothing behind."""
        await self._close()
        await self._tasks.close()

    async def _scan(self) -> tuple[Interface, ...]:
        settings = self._user.settings
        present = await asyncio.to_thread(read_interfaces)
        wanted: Literal["auto"] | Sequence[str] = settings.interfaces
        choice = choose(present, wanted, settings.bind_host)
        for name, reason in choice.skipped:
            if name not in self._skipped:
                self._note("skipped", reason, name)
        self._skipped = {name for name, _ in choice.skipped}
        if not choice.chosen:
            self._warn("no_interface", "no interface for zeroconf: name one in [mesh] interfaces, or use seeds")
        return choice.chosen

    async def _apply(self, interfaces: tuple[Interface, ...]) -> None:
        addresses = [address for interface in interfaces for address in interface.addresses]
        if self._interfaces:
            self._note("changed", f"addresses are now {', '.join(addresses) or 'none'}")
        if not addresses:
            await self._close()
            return
        if self._zeroconf is not None:
            await self._zeroconf.zeroconf.async_update_interfaces(addresses)
            if not self._announces:
                return
            self._info = self._make_info(addresses)
            sent = await self._zeroconf.async_update_service(self._info)
        else:
            self._zeroconf = AsyncZeroconf(interfaces=addresses)
            await self._zeroconf.zeroconf.async_wait_for_start()
            # Listen first: an answer to the first question may come within a millisecond.
            self._browser = AsyncServiceBrowser(
                self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._heard], question_type=DNSQuestionType.QM
            )
            if not self._announces:
                return
            self._info = self._make_info(addresses)
            sent = await self._zeroconf.async_register_service(self._info, cooperating_responders=True)
        self._tasks.spawn(_wait_for(sent), "mesh announce")  # three announcements over a second: not worth waiting for
        for interface in interfaces:
            self._note("announced", f"{', '.join(interface.addresses)} port {self._user.port}", interface.name)
        self._log.info("zeroconf_announced", addresses=addresses, interfaces=[item.name for item in interfaces])

    def _make_info(self, addresses: Sequence[str]) -> AsyncServiceInfo:
        node_id = self._user.node_id
        return AsyncServiceInfo(
            SERVICE_TYPE,
            f"{node_id}.{SERVICE_TYPE}",
            port=self._user.port,
            addresses=[socket.inet_aton(address) for address in addresses],
            server=f"meshnode-{node_id}.local.",
            properties={
                "v": TXT_VERSION,
                "mesh": self._mesh_hash,
                "id": node_id,
                "tier": self._user.tier,
                "port": str(self._user.port),
            },
        )

    def _heard(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if _node_id_of(name) == self._user.node_id:
            return
        if state_change is ServiceStateChange.Removed:
            self._note("left", _node_id_of(name))
            return
        if name in self._resolving or len(self._resolving) >= _RESOLVING_MAX:
            return  # repeated within the minute
        info = AsyncServiceInfo(service_type, name)
        if info.load_from_cache(zeroconf):  # the announcement carried everything: no question needed
            self._take(info)
            return
        self._resolving.add(name)
        self._tasks.spawn(self._resolve(zeroconf, info, name), "mesh resolve")

    def _repeat(self) -> None:
        """Hear once more of those who are announced still and not linked: all of them, or as many as anybody keeps."""
        if self._zeroconf is None:
            return
        zeroconf = self._zeroconf.zeroconf
        records = zeroconf.cache.async_entries_with_name(SERVICE_TYPE)
        announced = [name for record in records if (name := getattr(record, "alias", ""))]
        names = [name for name in announced if not self._user.is_up(_node_id_of(name))]
        for name in random.sample(names, min(len(names), PEERS_KNOWN_MAX)):
            self._heard(zeroconf, SERVICE_TYPE, name, ServiceStateChange.Updated)

    async def _resolve(self, zeroconf: Zeroconf, info: AsyncServiceInfo, name: str) -> None:
        try:
            if await info.async_request(zeroconf, _RESOLVE_MS):
                self._take(info)
            else:
                self._note("ignored", f"{name}: announced itself but does not answer with its address")
        finally:
            self._resolving.discard(name)

    def _take(self, info: AsyncServiceInfo) -> None:
        text = info.decoded_properties
        node_id = NodeId((text.get("id") or "")[:64])
        if text.get("mesh") != self._mesh_hash:
            self._note("ignored", f"{node_id or info.name}: belongs to a mesh of another name")
            return
        if not node_id or not info.port:
            self._note("ignored", f"{info.name}: no id or port in its announcement")
            return
        addresses = tuple(join_address(address, info.port) for address in info.parsed_addresses())[:PEERS_KNOWN_MAX]
        is_new = self._user.add_hint("zeroconf", node_id, addresses)
        self._note("heard" if is_new else "heard_again", f"{node_id} at {', '.join(addresses)}")

    def _note(self, event: str, detail: str, interface: str = "") -> None:
        self._user.note_diary("zeroconf", event, detail, interface)

    def _warn(self, key: str, detail: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            self._log.warning(key, detail=detail)

    async def _close(self) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        browser, self._browser = self._browser, None
        self._info = None
        self._interfaces = ()
        if browser is not None:
            await browser.async_cancel()
        if zeroconf is not None:
            # One goodbye instead of async_close's three over 250 ms: mDNS is a hint, and stopping should be quick.
            with contextlib.suppress(OSError):
                goodbye = zeroconf.zeroconf.generate_unregister_all_services()
                if goodbye is not None:
                    zeroconf.zeroconf.async_send(goodbye)
            await zeroconf.async_close()


def _node_id_of(name: str) -> NodeId:
    """Whom an honest announcement of this name is of."""
    return NodeId(name.removesuffix(f".{SERVICE_TYPE}"))


async def _wait_for(sent: object) -> None:
    if asyncio.isfuture(sent):
        await sent
