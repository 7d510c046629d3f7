"""One life of a whole node: the founder, the replica's group, the scheduler and the reporter of the product, put
together as `node.app` does, over simulated links, disk and executor."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog

from consensus.autopilot import Policy
from consensus.changes import CHANGE
from consensus.courier import PROPOSE, READ_INDEX
from consensus.driver import ReplicaDriver
from consensus.engine import Role
from consensus.errors import SnapshotInstalled
from consensus.group import Group
from consensus.inbox import Posted, Stop, StreamUp
from consensus.limits import DISK_FULL_RETRY_S
from consensus.replica import Replica
from consensus.state.commands import Outcome, RegisterMember
from consensus.state.rows import RitualOffer
from consensus.state.versions import labelled
from consensus.steps import LinkDown, LinkUp, Output, Propose, ReadIndex, Resolved, TransferLeadership
from mesh.bootstrap import Bootstrap
from mesh.founder import Founder
from mesh.proposals import FoundingRecord, Message, encode_message
from node.live import LiveBoard
from node.lookout import Lookout
from node.service.ports import NodeFacts
from node.service.times import now_ms
from node.share import Share
from node.snapshots import METHOD as SNAPSHOT
from node.testing.virtual.loop import CURRENT
from node.testing.virtual.workshop import VirtualWorkshop
from node.wiring import FoundingRecords
from storage.errors import DiskFull
from storage.ids import InstanceId, NodeId
from storage.space import Space
from tests.simulation.executor import RITUALS, SimulatedExecutor
from tests.simulation.observed import ObservedDomain
from tests.simulation.stepping import Broken, Frames, Life, Stepper

if TYPE_CHECKING:
    from tests.simulation.mesh_world import MeshWorld


class Envelope(NamedTuple):
    """What goes over a link: `kind` is raft, founding, notice, request or response."""

    kind: str
    body: bytes
    number: int = 0
    method: str = ""


class LinkLost(Exception):
    """A request has no answer."""


class Daemon(Life):
    """What reaches it from outside comes in through `enter`, so that it waits while the process is paused."""

    world: "MeshWorld"

    def __init__(self, world: "MeshWorld", node_id: NodeId) -> None:
        super().__init__(world, node_id)
        self.ended: asyncio.Future[None] = world.clock.loop.create_future()
        self.instance_id = InstanceId(f"{node_id}.{world.next_life()}")
        self.share: Share | None = None
        self.is_member = False
        self.driver: SimulatedDriver | None = None
        self._context = copy_context()
        self._context.run(CURRENT.set, self)
        self._context.run(self._start)

    def enter(self, do: Callable[..., None], *arguments: Any) -> None:
        self.world.clock.loop.call_soon(do, *arguments, context=self._context)

    # -- what the world does to it --

    def resume(self) -> None:
        super().resume()
        self.world.clock.loop.thaw(self)
        if self.driver is not None:
            self.driver.wake()

    def transfer(self) -> None:
        if self.driver is not None:
            self.driver.post(TransferLeadership())

    def ask(self, call: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """A request of a client, worked on in this process."""
        return self._context.copy().run(asyncio.create_task, call)

    def link_up(self, peer: NodeId) -> None:
        instance = self.world.running[peer].instance_id
        self.enter(self._on_link_up, peer, instance)

    def link_down(self, peer: NodeId, *, closed_by_peer: bool) -> None:
        self.enter(self._on_link_down, peer, closed_by_peer)

    def received(self, peer: NodeId, frame: Envelope) -> None:
        self.enter(self._on_envelope, peer, frame)

    # -- as `node.app` --

    def _start(self) -> None:
        world, node_id = self.world, self.node_id
        self.store: Any = world.stores[node_id]
        self.facts = NodeFacts(
            node_id=node_id,
            instance_id=self.instance_id,
            name=node_id,
            tier="core",
            mesh_name="simulated",
            data_dir="",
        )
        self.disk: Any = SimpleNamespace(space=Space.OK)
        self.workshop = VirtualWorkshop(self.store, world.parts[node_id])
        self.live = LiveBoard(node_id, lambda topic, payload: None)
        self.mesh: Any = SimulatedMesh(self)
        self.registry: Any = {
            name: SimpleNamespace(kind=offer.kind, concurrency=None) for name, offer in RITUALS.items()
        }
        self.executor: Any = SimulatedExecutor(self)
        self.lookout = Lookout(node_id, self._notify, lambda: False, self._judge_anew)
        records = FoundingRecords(self.store)
        machine = Bootstrap(node_id, "core", world.expect, records.load(), world.clock.now)
        self._founder = Founder(
            machine, records, self._send_founding, self._on_founded, self._count_unlinked, structlog.get_logger()
        )
        self.own("founder", self._founder.run())
        self.own("taking part", self._take_part())

    async def _take_part(self) -> None:
        founding = await self._founder.result
        world = self.world
        share = Share(self, founding.voters, Policy(voters_wanted=world.voters_wanted, grace_s=world.grace_s))
        self.mesh.serve(PROPOSE, share.group.on_request)
        self.mesh.serve(READ_INDEX, share.group.on_read_request)
        self.mesh.serve(CHANGE, share.changes.on_request)
        self.mesh.serve(SNAPSHOT, share.snapshots.on_request)
        await share.snapshots.open()
        share.group.start()
        self.share = share
        for peer in self.lookout.linked():
            share.group.on_link_up(peer)
        for name, work in share.tasks():
            self.own(name, work)
        await share.register(self._registration)
        self.is_member = True

    def own(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.clock.fail(error)

    def on_outcome(self, outcome: Outcome) -> None:
        assert self.share is not None, "an attempt ended that nobody can have assigned"
        self.share.reporter.add(outcome)

    def on_replica_failure(self, error: Exception, is_final: bool) -> None:
        if is_final or not isinstance(error, DiskFull):
            self.world.clock.fail(error)

    def _notify(self, peer: NodeId, topic: str, payload: bytes) -> bool:
        self.world.network.send(self.node_id, peer, Envelope("notice", payload, method=topic), "notice")
        return True

    def _judge_anew(self) -> None:
        if self.share is not None:
            self.share.dispatcher.wake()

    def _registration(self) -> RegisterMember:
        return RegisterMember(
            node_id=self.node_id,
            instance_id=self.instance_id,
            name=self.node_id,
            tier="core",
            address="",
            http_address="",
            slots=self.world.slots,
            async_slots=self.world.slots * 2,
            rituals={name: RitualOffer(version="1", kind=offer.kind) for name, offer in RITUALS.items()},
            software=labelled("simulated"),
            at_ms=now_ms(),
        )

    # -- founding --

    def _send_founding(self, peer: NodeId, message: Message) -> None:
        self.world.network.send(self.node_id, peer, Envelope("founding", encode_message(message)), "founding")

    def _on_founded(self, record: FoundingRecord) -> None:
        self.world.checks.founded(self.node_id, record)

    def _count_unlinked(self) -> int:
        """Discovery hints at all others, or at nobody."""
        linked = len(self.lookout.linked())
        return len(self.world.ids) - 1 - linked if self.world.has_discovery else 0

    # -- links --

    def _on_link_up(self, peer: NodeId, instance: InstanceId) -> None:
        self.lookout.link_up(peer, instance)
        self._founder.link_up(peer)
        if self.share is not None:
            self.share.group.on_link_up(peer)

    def _on_link_down(self, peer: NodeId, closed_by_peer: bool) -> None:
        self.lookout.link_down(peer, "closed_by_peer" if closed_by_peer else "silent", closed_by_peer=closed_by_peer)
        self._founder.link_down(peer)
        self.mesh.lose(peer)
        if self.share is not None:
            self.share.group.on_link_down(peer, closed_by_peer)

    def _on_envelope(self, peer: NodeId, envelope: Envelope) -> None:
        match envelope.kind:
            case "raft":
                if self.share is not None:
                    self.share.group.on_peer_message(peer, envelope.body)
            case "founding":
                self._founder.received(peer, envelope.body)
            case "notice":
                self.lookout.receive(peer, envelope.body)
            case "request":
                asyncio.create_task(self._answer(peer, envelope))  # noqa: RUF006  # the clock keeps all tasks
            case kind:
                assert kind == "response"
                self.mesh.answered(peer, envelope)

    async def _answer(self, peer: NodeId, request: Envelope) -> None:
        server = self.mesh.servers.get(request.method)
        if server is not None:
            answer = await server(peer, request.body)
            self.world.network.send(self.node_id, peer, Envelope("response", answer, request.number), "response")


class SimulatedMesh:
    """The part of `mesh.Mesh` that a share uses."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.servers: dict[str, Callable[[NodeId, bytes], Coroutine[Any, Any, bytes]]] = {}
        self._waiting: dict[tuple[NodeId, int], asyncio.Future[bytes]] = {}
        # A real answer comes over the link of its question; here one to a former life would find the number in use.
        self._count = daemon.world.lives << 32

    def hello_of(self, peer: NodeId) -> Any:
        return (
            SimpleNamespace(node_id=peer, tier="core", is_auto=False, node_name=peer, software=labelled("simulated"))
            if self._daemon.lookout.is_up(peer)
            else None
        )

    def serve(self, method: str, server: Callable[[NodeId, bytes], Coroutine[Any, Any, bytes]]) -> None:
        self.servers[method] = server

    def send(self, peer: NodeId, payload: bytes) -> bool:
        self._daemon.world.network.send(self._daemon.node_id, peer, Envelope("raft", payload), "raft")
        return True

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        daemon = self._daemon
        self._count += 1
        key = (peer, self._count)
        future = self._waiting[key] = asyncio.get_running_loop().create_future()
        envelope = Envelope("request", payload, self._count, method)
        try:
            if not daemon.world.network.send(daemon.node_id, peer, envelope, "request"):
                raise LinkLost
            async with asyncio.timeout(timeout_s):
                answer: bytes = await future
                return answer
        finally:
            del self._waiting[key]

    def answered(self, peer: NodeId, response: Envelope) -> None:
        future = self._waiting.get((peer, response.number))
        if future is not None and not future.done():
            future.set_result(response.body)

    def lose(self, peer: NodeId) -> None:
        for (asked, _), future in self._waiting.items():
            if asked == peer and not future.done():
                future.set_exception(LinkLost())


class SimulatedGroup(Group):
    """Without the thread."""

    def __init__(self, node_id: NodeId, voters: Any, store: Any, machine: Any, transport: Any, **options: Any) -> None:
        life = CURRENT.get()
        assert isinstance(life, Daemon)
        settings = life.world.settings
        super().__init__(node_id, voters, store, machine, transport, settings=settings, rng=life.dice, **options)
        real = self._driver
        self._driver = life.driver = SimulatedDriver(
            node_id,
            voters,
            store,
            machine,
            settings,
            real._on_frames,
            real._on_output,
            real._on_failure,
            life.dice,
        )
        self._driver.live_in(life, ObservedDomain(life.world.checks))


class SimulatedDriver(ReplicaDriver):
    """Crash only, as the real one; what that does on its thread is done here on the virtual clock."""

    def live_in(self, life: Daemon, observed: ObservedDomain) -> None:
        self._life = life
        self.observed = observed
        self._linked: set[NodeId] = set()
        self._stepper: Stepper | None = None

    def start(self) -> None:
        world, observed = self._life.world, self.observed
        replica = Replica(
            self._node_id, self._voters, self._store, observed, self._settings, self._rng, world.clock.now
        )
        observed.applied.clear()
        world.checks.starts(self._node_id, replica.status.applied_index)
        self._stepper = Stepper(self._life, replica, self._enter, self._on_step, self._on_broken)
        for peer in sorted(self._linked):
            self._stepper.give(LinkUp(peer))

    def post(self, given: Posted) -> None:
        assert not isinstance(given, Stop | StreamUp), "there are no threads and no streams here"
        if isinstance(given, LinkUp):
            self._linked.add(given.peer)
        elif isinstance(given, LinkDown):
            self._linked.discard(given.peer)
        if self._stepper is not None:
            self._stepper.give(given)
        elif isinstance(given, Propose | ReadIndex):
            self._answer_open([given.token])

    def wake(self) -> None:
        if self._stepper is not None:
            self._stepper.wake()

    def _on_step(self, output: Output) -> None:
        self._status = output.status
        self._enter(output)

    def _on_broken(self, replica: Replica, error: Broken) -> None:
        """The process dies of it, or waits for space as the real driver does; or it begins anew with a snapshot."""
        assert self._stepper is not None
        tokens = [*replica.open_proposals(), *self._stepper.open_proposals()]
        self._stepper = None
        if isinstance(error, SnapshotInstalled):
            self._answer_open(tokens)
            self._note_installed(error.index)
            self._life.world.snapshots_installed += 1
            self.start()
            return
        if self._life.world.dice.random() < 0.5:
            self._life.die()
            return
        self._enter((error, False))
        self._answer_open(tokens)
        self._life.world.clock.at(DISK_FULL_RETRY_S, self._restart)

    def _restart(self) -> None:
        if self._life.is_alive:
            self.start()

    def _answer_open(self, tokens: list[int]) -> None:
        """There is no replica now: its proposals have no known outcome, and it leads no more."""
        resolved = [Resolved(token, 0, None, "discarded") for token in tokens]
        self._status = msgspec.structs.replace(
            self._status, role=Role.FOLLOWER, leader=None, connected=(), match_index={}
        )
        self._enter(Output([], resolved, [], self._status, self._life.world.clock.now))

    def _publish(self, delivery: Output | Frames | tuple[Exception, bool]) -> None:
        self._enter(delivery)

    def _enter(self, delivery: Output | Frames | tuple[Exception, bool]) -> None:
        """To the process, which may be paused."""
        if isinstance(delivery, Output):
            self._life.enter(self._on_output, delivery)
        elif isinstance(delivery, list):
            self._life.enter(self._on_frames, delivery)
        else:
            self._life.enter(self._on_failure, *delivery)
