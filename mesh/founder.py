"""The shell of `bootstrap`: feeds it links, frames and time, carries out its effects in order, saves off the loop."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mesh.bootstrap import Bootstrap
from mesh.founding_steps import Input, Known, LinkDown, LinkUp, MeshFounded, Received, Save, Send, Tick
from mesh.limits import FOUNDING_TICK_S
from mesh.proposals import FoundingRecord, Message, decode_message
from mesh.supervise import Logger
from storage.ids import MeshId, NodeId

_INPUTS_MAX = 4096  # control frames of one second from seven peers, many times over


@dataclass(frozen=True, slots=True)
class Founding:
    """The mesh this node belongs to."""

    mesh_id: MeshId
    voters: tuple[NodeId, ...]


class FoundingStore(Protocol):
    """Where the founding record is durable; the node supplies it. Both are called off the event loop."""

    def load(self) -> FoundingRecord | None: ...

    def save(self, record: FoundingRecord) -> None:
        """Durable on return. An exception means not saved; it is tried again every second."""
        ...


class Founder:
    """One task that owns the Bootstrap machine. Inputs come from the loop's thread, in order."""

    def __init__(
        self,
        machine: Bootstrap,
        store: FoundingStore,
        send: Callable[[NodeId, Message], None],
        founded: Callable[[FoundingRecord], None],
        known: Callable[[], int],
        log: Logger,
    ) -> None:
        """`known()` counts the nodes that are hinted at and not linked."""
        self._machine = machine
        self._store = store
        self._send = send
        self._founded = founded
        self._known = known
        self._known_count = 0
        self._log = log
        self._inputs: asyncio.Queue[Input] = asyncio.Queue()  # bounded for messages below; links are few
        self._said = ""
        self._linked = set[NodeId]()
        self.result: asyncio.Future[Founding] = asyncio.get_running_loop().create_future()
        self.dropped = 0

    @property
    def status(self) -> str:
        return self._machine.status()

    @property
    def record(self) -> FoundingRecord | None:
        return self._machine.record

    def link_up(self, peer: NodeId) -> None:
        self._linked.add(peer)
        self._inputs.put_nowait(LinkUp(peer))

    def link_down(self, peer: NodeId) -> None:
        """Of one whose link was told of; others are passed over."""
        if peer in self._linked:
            self._linked.discard(peer)
            self._inputs.put_nowait(LinkDown(peer))

    def received(self, peer: NodeId, body: bytes) -> Message | None:
        """Queue a FOUNDING frame; returns what was in it."""
        message = decode_message(body)
        if message is not None:
            if self._inputs.qsize() < _INPUTS_MAX:
                self._inputs.put_nowait(Received(peer, message))
            else:
                self.dropped += 1  # messages are repeated
        return message

    async def run(self) -> None:
        """Until cancelled. Ticks stop once founded: then only links and frames wake it."""
        loop = asyncio.get_running_loop()
        await self._take(Tick())
        tick_at = loop.time() + FOUNDING_TICK_S
        while True:
            given: Input = Tick()
            wake_at = tick_at if self._machine.wake_at is None else min(tick_at, self._machine.wake_at)
            try:
                async with asyncio.timeout_at(None if self._machine.is_founded else wake_at):
                    given = await self._inputs.get()
            except TimeoutError:
                tick_at = loop.time() + FOUNDING_TICK_S
            await self._take(given)

    async def _take(self, given: Input) -> None:
        if not self._machine.is_founded and (count := self._known()) != self._known_count:
            self._known_count = count
            await self._carry_out(Known(count))
        await self._carry_out(given)

    async def _carry_out(self, given: Input) -> None:
        effects = self._machine.step(given, asyncio.get_running_loop().time(), time.time_ns() // 1_000_000)
        for effect in effects:
            match effect:
                case Save(record):
                    await self._save(record)
                case Send(peer, message):
                    self._send(peer, message)
                case MeshFounded(record):
                    self._founded(record)
                    if not self.result.done():
                        self.result.set_result(Founding(record.mesh_id, record.voters))
        status = self._machine.status()
        if status != self._said:
            self._said = status
            self._log.info("founding_status", status=status)

    async def _save(self, record: FoundingRecord) -> None:
        is_reported = False
        while True:
            try:
                await asyncio.to_thread(self._store.save, record)
            except Exception as error:
                # Nothing may be said before it is durable, so there is nothing else to do than to try again.
                if not is_reported:
                    self._log.error("founding_record_not_saved", error=str(error))
                    is_reported = True
                await asyncio.sleep(FOUNDING_TICK_S)
            else:
                return
