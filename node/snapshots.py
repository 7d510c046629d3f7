"""Snapshots between nodes: gives them, fetches one when the replica needs it, and checks that this node's own rows are
what was written.

Whoever needs a snapshot asks for it, chunk by chunk, over requests of the mesh: so the receiver sets the pace, a lost
link costs one chunk, and a restart nothing that had arrived. Nobody is chosen to give: any node that is not in
quarantine gives what it has applied, and snapshots of the same index are the same bytes. One thing at a time is done
here, and all heavy work in another process (`node.workshop`), so that neither replica nor event loop notices it.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import msgspec
import structlog

from consensus.snapshot import AboutSnapshots, HoldLog, InstallSnapshot, Quarantine, identity
from consensus.steps import ReplicaStatus
from node.workshop import DataDamaged, WorkFailed
from storage.dump import Header
from storage.errors import StorageError
from storage.ids import NodeId

METHOD = "snapshot"

CHUNK_BYTES = 512 * 1024
"""Asked for at once: a few milliseconds of a link, and far below what one frame may hold."""

REQUEST_S = 10.0
WAIT_S = 0.5
"""Until the next question while the other side is still making it."""

RETRY_S = 1.0
RETRY_LAST_S = 30.0
"""After a failure to fetch one; doubled each time. Who could not make one does not try again for the longer of them."""

KEEP_S = 120.0
"""How long a snapshot is kept after the last question for it: somebody may have restarted."""

HOLD_S = 20.0
"""Between questions while what was received is being built, which may take minutes. A third of `LOG_HELD_S`."""

CHECK_FIRST_S = 3.0
"""After the start. Soon, because a disk that was repaired or copied is the likeliest to be damaged."""

CHECK_PERIOD_S = 6 * 3600.0
"""Between checks of all rows. Rot is rare, and each check reads everything once."""

INSTALL_S = 60.0
"""For the replica to take a snapshot over; far more than it needs."""

log = structlog.get_logger()

T = TypeVar("T")
State: TypeAlias = Literal["idle", "asking", "receiving", "building", "installing", "waiting"]


class Ask(msgspec.Struct, frozen=True, array_like=True):
    after: int
    """An older one, or one of this index, would be useless."""
    identity: bytes
    offset: int
    """From here on, if it is that of this identity; else from the beginning."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """`refusal`: there is none, and why; `wait`: it is being made."""

    refusal: str
    wait: bool
    index: int = 0
    size: int = 0
    offset: int = 0
    data: bytes = b""


class Progress(msgspec.Struct, frozen=True):
    """Of a snapshot that this node needs, as told on the status page."""

    state: State = "idle"
    source: NodeId | None = None
    index: int = 0
    received_bytes: int = 0
    total_bytes: int = 0
    problem: str = ""


class Workshop(Protocol):
    """`node.workshop.Workshop`: blocks."""

    def open(self) -> None: ...
    def check(self) -> None: ...
    def make(self) -> tuple[Header, int]: ...
    def read(self, offset: int, size: int) -> bytes: ...
    def discard(self) -> None: ...
    def received(self) -> tuple[bytes, int]: ...
    def receive(self, offset: int, data: bytes) -> bool: ...
    def fill(self) -> tuple[Header, Callable[[], Any]]: ...
    def clean(self) -> None: ...
    def stop(self) -> None: ...


class Consensus(Protocol):
    """What is needed of `consensus.group.Group`."""

    def status(self) -> ReplicaStatus: ...
    def subscribe_status(self, callback: Callable[[ReplicaStatus], None]) -> object: ...
    def post(self, given: AboutSnapshots) -> None: ...


Request: TypeAlias = Callable[[NodeId, str, bytes, float], Awaitable[bytes]]


class NoSnapshot(Exception):
    """The peer gives none; the message says why."""


class Snapshots:
    def __init__(self, node_id: NodeId, group: Consensus, request: Request, workshop: Workshop) -> None:
        self._node_id = node_id
        self._group = group
        self._request = request
        self._workshop = workshop
        self._one_at_a_time = asyncio.Lock()
        self._made: tuple[Header, int] | None = None
        self._making: asyncio.Task[None] | None = None
        self._making_from = 0
        """What is being made has at least this index."""
        self._failure = ""
        """Why the last one could not be made."""
        self._failed_at = float("-inf")
        self._asked_at = 0.0
        self._expiry: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._attempts = 0
        self.progress = Progress()
        self.checked_at: float | None = None
        """Monotonic: when all rows of this node were last found sound."""
        self._installed = asyncio.Event()
        group.subscribe_status(self._on_status)

    def _on_status(self, status: ReplicaStatus) -> None:
        if status.needs_snapshot:
            self._wanted.set()
        if status.installed_index:
            self._installed.set()

    async def open(self) -> None:
        await asyncio.to_thread(self._workshop.open)

    def stop(self) -> None:
        self._workshop.stop()
        if self._making is not None:
            self._making.cancel()
        if self._expiry is not None:
            self._expiry.cancel()

    # -- giving --

    async def on_request(self, peer: NodeId, payload: bytes) -> bytes:
        return _encode(await self._answer(_decode_ask(payload)))

    async def _answer(self, ask: Ask) -> Part:
        status = self._group.status()
        if status.is_quarantined:
            return Part("its own data is damaged", False)
        self._asked_at = time.monotonic()
        made = self._made
        if made is None or made[0].index <= ask.after or made[0].index < status.first_index:
            if status.applied_index <= ask.after:
                return Part(f"it has itself applied no more than {status.applied_index}", False)
            if self._making is None or self._making.done():
                if time.monotonic() - self._failed_at < RETRY_LAST_S:
                    return Part(self._failure, False)  # another node may be able to
                self._making = asyncio.create_task(self._make(), name="snapshot")
                self._making_from = status.applied_index
            self._group.post(HoldLog(self._making_from))
            return Part("", True)
        header, size = made
        self._group.post(HoldLog(header.index))
        offset = ask.offset if ask.identity == identity(header) else 0
        data = await asyncio.to_thread(self._workshop.read, offset, CHUNK_BYTES)
        if self._made is not made:
            return Part("", True)
        return Part("", False, header.index, size, offset, data)

    async def _make(self) -> None:
        """Afterwards it lies ready, until nobody asks for it any more."""
        self._made = None
        async with self._one_at_a_time:
            try:
                self._made = await self._do(self._workshop.make)
            except DataDamaged:
                self._withdraw()
                return
            except (WorkFailed, StorageError, OSError) as error:
                self._failure, self._failed_at = f"it cannot make one: {error}", time.monotonic()
                log.warning("snapshot_not_made", reason=str(error))
                return
        log.info("snapshot_made", index=self._made[0].index, bytes=self._made[1])
        if self._expiry is None or self._expiry.done():
            self._expiry = asyncio.create_task(self._expire(), name="expiry of the snapshot")

    async def _expire(self) -> None:
        """Throws away what lies ready when nobody has asked for it for a while."""
        while True:
            left_s = self._asked_at + KEEP_S - time.monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            async with self._one_at_a_time:  # the next one is written to the same file
                if self._asked_at + KEEP_S > time.monotonic():
                    continue  # somebody has, while this waited
                self._made = None
                try:
                    await asyncio.to_thread(self._workshop.discard)  # a large file takes its time
                except OSError as error:
                    log.warning("snapshot_not_discarded", reason=str(error))
                return

    # -- fetching --

    async def run(self) -> None:
        """Fetches and installs whenever the replica needs it, until cancelled."""
        pause_s = RETRY_S
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            status = self._group.status()
            if not status.needs_snapshot:
                self.progress = Progress()
                pause_s = RETRY_S
                continue
            try:
                source = self._choose(status)
                await self._fetch(source)
                pause_s = RETRY_S
            except (NoSnapshot, WorkFailed, StorageError, OSError, TimeoutError) as error:
                self._fail(str(error) or "no answer in time")
            except Exception as error:  # whatever a transport raises
                self._fail(str(error))
            self._wanted.set()
            if self.progress.state == "waiting":
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RETRY_LAST_S)

    def _choose(self, status: ReplicaStatus) -> NodeId:
        """The leader first, which certainly goes on; then whoever is linked, one after the other."""
        others: Sequence[NodeId] = [peer for peer in status.connected if peer != status.leader]
        if status.leader is not None and status.leader != self._node_id:
            others = [status.leader, *others]
        if not others:
            raise NoSnapshot("there is no link to any node that could give one")
        self._attempts += 1
        return others[(self._attempts - 1) % len(others)]

    async def _fetch(self, source: NodeId) -> None:
        self._note("asking", source=source)
        log.info("snapshot_wanted", source=source, reason=self._group.status().quarantine_reason or "too far behind")
        is_complete, ask = False, b""
        while not is_complete:
            status = self._group.status()
            if not status.needs_snapshot:
                await asyncio.to_thread(self._workshop.clean)
                self._note("idle")
                return
            after = status.applied_index - status.is_quarantined
            known, offset = await asyncio.to_thread(self._workshop.received)
            ask = _encode(Ask(after, known, offset))
            part = _decode_part(await self._request(source, METHOD, ask, REQUEST_S))
            if part.refusal:
                raise NoSnapshot(f"{source} gives none: {part.refusal}")
            if part.wait:
                await asyncio.sleep(WAIT_S)
                continue
            is_complete = await asyncio.to_thread(self._workshop.receive, part.offset, part.data)
            if not part.data and not is_complete:  # nothing is left to be sent of what had arrived whole before
                raise NoSnapshot(f"{source} gave nothing")
            received = part.offset + len(part.data)
            self._note("receiving", index=part.index, received_bytes=received, total_bytes=part.size)
        asking = asyncio.create_task(self._ask_on(source, ask), name="hold of the log")
        try:
            async with self._one_at_a_time:
                self._note("building")
                header, open_filled = await self._do(self._workshop.fill)
                self._note("installing", index=header.index)
                self._installed.clear()
                self._group.post(InstallSnapshot(header, open_filled))
                async with asyncio.timeout(INSTALL_S):
                    await self._installed.wait()
                await asyncio.to_thread(self._workshop.clean)
        finally:
            asking.cancel()
        self._attempts = 0
        self._note("idle")
        log.info("snapshot_installed", index=header.index, source=source)

    async def _ask_on(self, source: NodeId, ask: bytes) -> None:
        """Until cancelled: whoever is asked keeps the log that comes after what it gave."""
        while True:
            await asyncio.sleep(HOLD_S)
            with contextlib.suppress(Exception):  # whatever a transport raises
                await self._request(source, METHOD, ask, REQUEST_S)

    def _note(self, state: State, **facts: Any) -> None:
        if state == "idle":
            self.progress = Progress()
        else:
            self.progress = msgspec.structs.replace(self.progress, state=state, problem="", **facts)

    def _fail(self, problem: str) -> None:
        if problem != self.progress.problem:
            log.warning("snapshot_not_installed", source=self.progress.source, reason=problem)
        self.progress = msgspec.structs.replace(self.progress, state="waiting", problem=problem)

    # -- checking --

    async def check(self) -> None:
        """Now and then, until cancelled: a row that has changed by itself is in no digest that replicas compare, until
        somebody writes it again."""
        await asyncio.sleep(CHECK_FIRST_S)
        while True:
            async with self._one_at_a_time:
                if not self._group.status().is_quarantined:
                    await self._check_once()
            await asyncio.sleep(CHECK_PERIOD_S)

    async def _check_once(self) -> None:
        try:
            await self._do(self._workshop.check)
        except DataDamaged:
            self._withdraw()
        except (WorkFailed, StorageError, OSError) as error:
            log.warning("rows_not_checked", reason=str(error))
        else:
            self.checked_at = time.monotonic()
            log.info("rows_checked")

    def _withdraw(self) -> None:
        reason = "rows of its tables are not what was written: the disk or the memory of this machine has changed them"
        log.error("data_damaged", reason=reason)
        self._group.post(Quarantine(reason))

    async def _do(self, work: Callable[[], T]) -> T:
        """On a thread; when cancelled it is ended, and waited for: it must not go on beside what comes next."""
        running = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._workshop.stop()
            await asyncio.wait([running])
            raise


_encode = msgspec.msgpack.Encoder().encode
_decode_ask = msgspec.msgpack.Decoder(Ask).decode
_decode_part = msgspec.msgpack.Decoder(Part).decode
