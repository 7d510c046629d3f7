"""The uplink of a Leaf: finds a parent, hangs on it, and finds another one when it is lost.

Whom it asks and takes is decided in `mesh.parents`. Work goes on in between: the executor knows nothing of parents, and
what it finishes waits in the outbox. A parent that is to be changed is changed by hanging on the new one first.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from mesh.discovery.remembered import load_peers, save_peers
from mesh.errors import MeshError, PeerUnavailable, RemoteFailed
from mesh.links.book import KnownPeer
from mesh.parents import Alternative, Candidates, Sample, choose, patience_s
from mesh.uplink import Answered, Uplinks
from node.executor.executor import Executor
from node.executor.work import AttemptKey, BranchInput, LiveUpdate
from node.leaf import limits
from node.leaf.multicast import Multicast
from node.leaf.outbox import Outbox
from node.live import Sharing
from node.uplinks import messages
from node.uplinks.errors import UplinkError
from node.uplinks.messages import Assigned, Attach, Attached, Register, Registered, SignedOutcomes, Told, Verdict
from storage.errors import CodecError
from storage.ids import NodeId

FINAL = ("has_left", "stale_instance")
"""Refusals of a registration that no later one of this instance would change."""

log = structlog.get_logger()


class Uplink:
    """`offer(running)` is what this Leaf registers with. `run` until cancelled."""

    def __init__(
        self,
        name: str,
        links: Uplinks,
        candidates: Candidates,
        outbox: Outbox,
        offer: Callable[[list[AttemptKey]], Register],
        multicast: Multicast,
        rng: random.Random,
    ) -> None:
        self.executor: Executor | None = None
        """Set before `run`."""
        self.told: Told | None = None
        """Of the parent; None while there is none."""
        self.is_registered = False
        self.refusal = ""
        """Why the mesh takes this instance no more, if so."""
        self.since = time.monotonic()
        """The parent, or the lack of one."""
        self.trouble = "looking for a parent"
        self.changes = 0
        """How often a parent was found."""
        self._name = name
        self._links = links
        self._candidates = candidates
        self._outbox = outbox
        self._offer = offer
        self._multicast = multicast
        self._rng = rng
        self._sharing = Sharing(self._share)
        self._hints = asyncio.Event()
        self._lost = asyncio.Event()
        self._again = asyncio.Event()
        self._inputs: dict[AttemptKey, list[BranchInput]] = {}
        self._tasks = asyncio.TaskGroup()
        self._moving: asyncio.Task[None] | None = None
        self._complaint = ""
        links.on_link_down = self._on_link_down
        links.on_notice = self._on_notice
        links.serve(messages.WORK, self._on_work)
        multicast.on_found = self.hint

    @property
    def parent(self) -> NodeId | None:
        return None if self.told is None else self.told.parent

    @property
    def alternatives(self) -> list[Alternative]:
        return [] if self.told is None else self.told.alternatives

    def hint(self, node_id: NodeId, addresses: tuple[str, ...]) -> None:
        """Of discovery."""
        if self._candidates.hint(node_id, addresses, self._rng):
            self._hints.set()

    def publish(self, update: LiveUpdate) -> None:
        """News of a running attempt: they go to the parent, or nowhere."""
        if self.told is not None:
            self._sharing.add(update)

    def ended(self, key: AttemptKey) -> None:
        """An attempt that executed here."""
        self._sharing.ended(key)

    async def ask(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Whatever the parent serves. Raises MeshError."""
        if self.parent is None:
            raise PeerUnavailable("no_parent", self.trouble)
        return await self._links.request(self.parent, method, payload, timeout_s)

    async def seen(self, phrases: list[str]) -> dict[str, int]:
        """How often the mesh has recorded these patterns; nothing while it cannot be asked."""
        try:
            answer = await self.ask(messages.SEEN, messages.encode(phrases), limits.SEEN_S)
            return messages.decode(answer, dict[str, int])
        except (MeshError, CodecError):
            return {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._sharing.run(), name="live")
            while True:
                if self.told is None:
                    await self._find()
                await self._hang_on()

    async def farewell(self) -> None:
        """Takes no more work: says so, if anybody listens."""
        if self.parent is not None and self.is_registered:
            with contextlib.suppress(MeshError, CodecError):
                await self._register(self.parent)

    # --- finding one ---

    async def _find(self) -> None:
        loop = asyncio.get_running_loop()
        refusals = 0
        ping_s = limits.PING_S_MIN
        while True:
            self._hints.clear()
            now = loop.time()
            asked = self._candidates.next(now, self._rng)[: 1 if refusals else None]
            found = await asyncio.gather(*(self._links.ask(addresses, ping_s) for _, addresses in asked))
            for (key, _), answered in zip(asked, found, strict=True):
                self._note(key, answered)
            if await self._attach_to_one([answered.sample for answered in found if answered.sample is not None]):
                self._multicast.stop()
                return
            if not asked or not any(answered.sample for answered in found):
                self._multicast.start()
                ping_s = min(2 * ping_s, limits.PING_S_MAX)
            self._complain(asked, found)
            if any(answered.sample for answered in found):  # what is new in sight belongs to the same mesh
                refusals += 1
                await asyncio.sleep(patience_s(refusals, self._rng))
                continue
            refusals = 0
            due_at = self._candidates.due_at()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(None if due_at is None else max(due_at, loop.time() + 0.05)):
                    await self._hints.wait()

    def _note(self, key: str, answered: Answered) -> None:
        if answered.sample is None:
            self._candidates.failed(key, asyncio.get_running_loop().time(), self._rng)
        else:
            self._candidates.answered(key)

    async def _attach_to_one(self, samples: list[Sample]) -> bool:
        """The best of those that answered, or the next best; the others are let go."""
        left = {sample.node_id: sample for sample in samples}
        taken: NodeId | None = None
        while taken is None and (chosen := choose(left.values(), self._rng)) is not None:
            del left[chosen.node_id]
            if await self._attach(chosen.node_id):
                taken = chosen.node_id
        for sample in samples:
            if sample.node_id != taken:
                self._links.drop(sample.node_id, "not_chosen")
                if taken is None:
                    self._candidates.failed(sample.node_id, asyncio.get_running_loop().time(), self._rng)
        return taken is not None

    async def _attach(self, peer: NodeId) -> bool:
        """Asks one that is linked to be its parent."""
        try:
            payload = messages.encode(Attach(name=self._name))
            attached = messages.decode(
                await self._links.request(peer, messages.ATTACH, payload, limits.ATTACH_S), Attached
            )
        except (MeshError, CodecError) as error:
            self.trouble = f"{self._describe(peer)} does not take this Leaf: {error}"
            return False
        self._candidates.told([*attached.told.alternatives, *self._alternative(peer)])
        if attached.refusal:
            self.trouble = f"{self._describe(peer)} does not take this Leaf: {attached.detail}"
            return False
        if not self._links.is_up(peer):
            return False
        await self._adopt(peer, attached.told)
        return True

    async def _adopt(self, peer: NodeId, told: Told) -> None:
        self.told, self.since, self.trouble = told, time.monotonic(), ""
        self.is_registered = False
        self.changes += 1
        self._inputs.clear()  # the new parent sends all parts again
        self._complaint = ""
        self._outbox.is_cut_off = False
        self._lost.clear()
        self._again.set()
        log.info("parent_found", parent=told.name, id=peer, tier=told.tier, address=self._links.address_of(peer))
        await self._remember()

    def _alternative(self, peer: NodeId) -> list[Alternative]:
        hello = self._links.hello_of(peer)
        address = self._links.address_of(peer)
        return [] if hello is None else [Alternative(peer, hello.node_name, hello.tier, (address, *hello.addresses))]

    def _describe(self, peer: NodeId) -> str:
        hello = self._links.hello_of(peer)
        return peer if hello is None else hello.node_name

    def _complain(self, asked: list[tuple[str, tuple[str, ...]]], found: list[Answered]) -> None:
        """Once for each thing that is wrong."""
        errors = [answered.error for answered in found if answered.sample is None]
        forming = [
            self._describe(one.sample.node_id) for one in found if one.sample is not None and not one.sample.most
        ]
        if errors:
            self.trouble = "no parent answers: " + "; ".join(errors)
        elif forming:
            self.trouble = f"{', '.join(forming)} takes no Leaf at the moment: it does not belong to a working mesh"
        elif not asked and not len(self._candidates):
            self.trouble = "no parent is in sight: " + (
                "multicast has found none yet; start a Core or Edge node with the same mesh name and secret, "
                "or name one in [mesh] seeds" if self._multicast.is_wanted else "name one in [mesh] seeds"
            )  # fmt: skip
        kind = " ".join(sorted({error.partition(": ")[2].partition(" (")[0] for error in errors})) or self.trouble
        if kind != self._complaint:
            self._complaint = kind
            log.warning("no_parent", reason=self.trouble)

    async def _remember(self) -> None:
        peers = tuple(KnownPeer(NodeId(key), addresses) for key, addresses in self._candidates.known().items())
        with contextlib.suppress(OSError):  # only hints
            await asyncio.to_thread(save_peers, self._links.data_dir, peers)

    def recall(self) -> None:
        """The parents of last time. Blocking."""
        for peer in load_peers(self._links.data_dir):
            self._candidates.recall(peer.node_id, peer.addresses)

    # --- hanging on it ---

    async def _hang_on(self) -> None:
        """Until the parent is lost or changed."""
        parent = self.parent
        assert parent is not None
        work = asyncio.create_task(self._work_with(parent), name="work with the parent")
        lost = asyncio.create_task(self._lost.wait(), name="parent lost")
        try:
            await asyncio.wait((work, lost), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
        finally:
            await _ended(work, lost)
        self._lost.clear()
        if self._is_lost() and self._moving is not None:  # it would attach while another parent is looked for
            await _ended(self._moving)
        if self._is_lost():  # not changed
            self.told, self.since, self.is_registered = None, time.monotonic(), False
            self.trouble = "the parent is lost: looking for another one"
            self._outbox.is_cut_off = True
            self._candidates.hurry()
            await asyncio.sleep(self._rng.random() * limits.ORPHAN_JITTER_S)

    def _is_lost(self) -> bool:
        return self.parent is None or not self._links.is_up(self.parent)

    async def _work_with(self, parent: NodeId) -> None:
        """What a former start has left goes first: once this one is registered, it counts no more."""

        async def report(signed: SignedOutcomes) -> list[Verdict]:
            answer = await self._links.request(parent, messages.REPORT, messages.encode(signed), limits.REPORT_S)
            return messages.decode(answer, list[Verdict])

        async def deliver() -> None:
            await self._outbox.deliver(report)

        async def register() -> None:
            while True:
                await self._again.wait()
                self._again.clear()
                try:
                    await self._register(parent)
                except BaseException:
                    self._again.set()
                    raise

        await self._insist(parent, lambda: self._outbox.deliver_kept(report))
        await asyncio.gather(self._insist(parent, register), self._insist(parent, deliver))

    async def _insist(self, parent: NodeId, work: Callable[[], Awaitable[None]]) -> None:
        """Again and again, over what the parent cannot do at the moment."""
        told = ""
        while True:
            try:
                return await work()
            except (MeshError, CodecError) as error:
                if str(error) != told:
                    told = str(error)
                    log.warning("parent_cannot_yet", reason=told)
                if isinstance(error, RemoteFailed) and error.code == "not_attached":  # it knows nothing of this Leaf
                    self._links.drop(parent, error.code)
            await asyncio.sleep(limits.PAUSE_S)

    async def _register(self, parent: NodeId) -> None:
        assert self.executor is not None
        running = [*self.executor.running(), *self._outbox.keys()]
        payload = messages.encode(self._offer(running))
        try:
            answer = await self._links.request(parent, messages.REGISTER, payload, limits.REGISTER_S)
        except RemoteFailed as error:
            if error.code not in FINAL:
                raise
            if self.refusal != str(error):
                log.warning("not_registered", reason=str(error))
            self.refusal, self.is_registered = str(error), False
            for key in running:
                self.executor.cancel(*key)  # nothing is leased to this instance any more
            return
        registered = messages.decode(answer, Registered)
        for key in registered.stop:
            self.executor.cancel(*key)
        if not self.is_registered and self.parent == parent:
            self.is_registered = True
            asyncio.get_running_loop().call_later(limits.WARM_AFTER_S, self.executor.warm)
            log.info("registered", parent=self.told.name if self.told is not None else parent)

    # --- what the parent says ---

    def _on_link_down(self, peer: NodeId, reason: str) -> None:
        if peer == self.parent:
            log.warning("parent_lost", parent=self._describe(peer), reason=reason)
            self._lost.set()

    async def _on_work(self, peer: NodeId, payload: bytes) -> bytes:
        assert self.executor is not None
        if peer != self.parent:
            raise UplinkError("not_attached", "this Leaf hangs on another node")
        for assigned in messages.decode(payload, list[Assigned]):
            work = assigned.work
            if work.inputs is None:
                self.executor.submit(work)
                continue
            inputs = self._inputs.setdefault(work.key, [])
            inputs.extend(assigned.inputs)
            while len(self._inputs) > limits.CONSOLIDATIONS_MAX:
                del self._inputs[next(iter(self._inputs))]
            if assigned.is_last:
                self._inputs.pop(work.key, None)
                self.executor.submit(work.with_inputs(inputs))
        return b""

    def _on_notice(self, peer: NodeId, topic: str, payload: bytes) -> None:
        if peer != self.parent:
            return
        match topic:
            case messages.STOP:
                for key in messages.decoded(payload, list[AttemptKey]) or ():
                    if self.executor is not None:
                        self.executor.cancel(*key)
            case messages.TOLD:
                told = messages.decoded(payload, Told)
                if told is not None and told.parent == peer:
                    self.told = told
                    self._candidates.told([*told.alternatives, *self._alternative(peer)])
            case messages.AGAIN:
                self._again.set()
            case messages.MOVE:
                to = messages.decoded(payload, Alternative)
                if to is not None and (self._moving is None or self._moving.done()):
                    self._moving = self._tasks.create_task(self._move(to), name="move to another parent")
            case _:
                pass

    async def _move(self, to: Alternative) -> None:
        """Hangs on another parent if that one is no worse; the former one is let go then."""
        former = self.parent
        if former is None or to.node_id == former:
            return
        answering = to.node_id
        try:
            sample = (await self._links.ask(to.addresses, limits.PING_S_MIN)).sample
            if sample is None:
                return
            answering = sample.node_id
            here_s = self._links.rtt_s(former) or 0.0
            is_near = sample.rtt_s <= limits.MOVE_RTT_FACTOR * here_s + limits.MOVE_RTT_SLACK_S
            if sample.node_id == to.node_id and sample.has_room and is_near and await self._attach(to.node_id):
                self._lost.set()
                self._links.drop(former, "not_chosen")
        finally:
            if answering != self.parent:
                self._links.drop(answering, "not_chosen")

    def _share(self, topic: str, payload: bytes) -> None:
        if self.parent is not None:
            with contextlib.suppress(MeshError):
                self._links.notify(self.parent, topic, payload)


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
