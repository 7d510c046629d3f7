"""Those who use the mesh over any node: submit sessions until they know the outcome, cancel some, read what must be
there, and watch."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from consensus.errors import ConsensusError
from consensus.state import queries
from consensus.state.commands import Answer, Applied, BranchSpec, CancelSession, SubmitSession
from node.service.times import now_ms
from storage.ids import NodeId, SessionId
from tests.simulation.checks import Violation

if TYPE_CHECKING:
    from tests.simulation.daemon import Daemon
    from tests.simulation.mesh_world import MeshWorld


SLACK_S = 8.0
"""What the age of a reading leaves out: a leader goes on 1.8 s after it was cut off, a message is 1 s on its way, and
waits 3 s in a process that is paused, as its sender may."""


class NoAnswer(Exception):
    """The node is not there, not ready, died meanwhile, or could not do it in time. It may have been done."""


class Clients:
    def __init__(self, world: "MeshWorld") -> None:
        self.world = world
        self.dice = random.Random(world.dice.random())
        self.submitted: dict[SessionId, int] = {}
        """Sessions whose submission was acknowledged -> log index."""
        self._told_at: dict[SessionId, float] = {}
        self.cancelled: dict[SessionId, int] = {}
        self.reads = 0
        self.seen: list[tuple[int, int]] = []
        """Numbers of the events that the watcher has got."""

    def start(self) -> None:
        for work in [*(self._use() for _ in range(self.dice.choice([1, 2, 4]))), self._watch()]:
            task = asyncio.create_task(work)
            task.add_done_callback(self._on_done)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.clock.fail(error)

    # -- one user --

    async def _use(self) -> None:
        dice = self.dice
        while not self.world.mix.is_over:
            await asyncio.sleep(dice.random() * self.world.think_s)
            kind = dice.random()
            if kind < 0.5:
                await self._submit()
            elif kind < 0.6:
                await self._cancel()
            elif kind < 0.8:
                await self._read()
            else:
                await self._read_here()

    async def _submit(self) -> None:
        """The same session again and again, over any node, until the outcome is known."""
        dice = self.dice
        identity = SessionId(str(uuid.UUID(int=dice.getrandbits(128), version=4)))
        specs = [self._spec(dice.choice(["think", "compute"])) for _ in range(dice.choice([1, 1, 2, 5]))]
        consolidation = self._spec("consolidate")

        def command(daemon: "Daemon") -> SubmitSession:
            assert daemon.share is not None
            offer = daemon.share.places.offer(specs[0].ritual) if dice.random() < 0.5 else None
            return SubmitSession(
                session_id=identity,
                thought="why?",
                branches=specs,
                consolidation=consolidation,
                submitted_by=daemon.node_id,
                at_ms=now_ms(),
                offer=offer,
            )

        async def submit(daemon: "Daemon") -> Answer:
            assert daemon.share is not None
            group = daemon.share.group
            answer = await group.propose(command(daemon), dice.choice([0.5, 3.0]))
            with group.read() as txn:
                if isinstance(answer, Applied) and queries.get_session(txn, identity) is None:
                    raise Violation(f"{daemon.node_id} does not read what was written on it: {identity}")
            return answer

        answer = await self._until_known(submit)
        if isinstance(answer, Applied):
            self.submitted[identity] = answer.index
            self._told_at[identity] = self.world.clock.now

    async def _cancel(self) -> None:
        if not self.submitted:
            return
        identity = self.dice.choice(list(self.submitted))

        async def cancel(daemon: "Daemon") -> Answer:
            assert daemon.share is not None
            command = CancelSession(session_id=identity, reason="planned", at_ms=now_ms())
            return await daemon.share.group.propose(command, 3.0)

        answer = await self._until_known(cancel)
        if isinstance(answer, Applied) and answer.changed:
            self.cancelled[identity] = answer.index

    async def _read(self) -> None:
        """Linearizable: whatever was acknowledged anywhere before the question is in the answer."""
        before = dict(self.submitted)

        async def read(daemon: "Daemon") -> None:
            assert daemon.share is not None
            group = daemon.share.group
            index = await group.barrier(self.dice.choice([0.5, 3.0]))
            with group.read() as txn:
                missing = [identity for identity in before if queries.get_session(txn, identity) is None]
            if missing or index < max(before.values(), default=0):
                raise Violation(f"{daemon.node_id}: a linearizable read lacks {missing}, as of {index}")

        with contextlib.suppress(NoAnswer):
            await self._ask(read)
            self.reads += 1

    async def _read_here(self) -> None:
        """Stale: whatever was acknowledged anywhere longer ago than the age of the reading, and the time that messages
        and a leader that is cut off may take, is in it. Or as the leader has it, which promises less."""

        async def read(daemon: "Daemon") -> None:
            assert daemon.share is not None
            group = daemon.share.group
            if self.dice.random() < 0.3:
                await group.catch_up(0.5)
            age_s = group.age_s()
            if age_s is None:
                return
            with group.read() as txn:
                missing = [
                    identity
                    for identity, told_at in self._told_at.items()
                    if told_at < self.world.clock.now - age_s - SLACK_S and queries.get_session(txn, identity) is None
                ]
            if missing:
                raise Violation(f"{daemon.node_id}: a reading of age {age_s:.3f} s lacks {missing}")

        with contextlib.suppress(NoAnswer):
            await self._ask(read)
            self.reads += 1

    # -- the watcher --

    async def _watch(self) -> None:
        """Follows all events over changing nodes, from what each has applied."""
        while True:
            await asyncio.sleep(self.dice.random())
            if self.world.running:
                self.watch_once(self.dice.choice(sorted(self.world.running)))

    def watch_once(self, i: NodeId) -> bool:
        """Whether there was something new."""
        with self.world.stores[i].read() as txn:
            index, position = self.seen[-1] if self.seen else (0, -1)
            news = [(one.index, one.position) for one in queries.events_since(txn, index, position, 500)]
        self.seen += news
        return bool(news)

    # -- asking --

    def _spec(self, ritual: str) -> BranchSpec:
        dice = self.dice
        return BranchSpec(
            ritual=ritual,
            task="look",
            parameters={},
            seed=dice.getrandbits(32),
            timeout_ms=dice.choice([100, 500, 2000]),
            attempts_max=dice.choice([1, 2, 3]),
        )

    async def _until_known(self, call: Any) -> Answer | None:
        """None: given up, because the faults are over."""
        while True:
            try:
                answer: Answer = await self._ask(call)
            except NoAnswer:
                await asyncio.sleep(0.05 + self.dice.random() * 0.2)
                if self.world.mix.is_over and self.dice.random() < 0.1:
                    return None
            else:
                return answer

    async def _ask(self, call: Any) -> Any:
        """Any node that serves."""
        running = self.world.running
        if not running:
            raise NoAnswer
        daemon = running[self.dice.choice(sorted(running))]
        if daemon.share is None:
            raise NoAnswer
        work: Coroutine[Any, Any, Any] = call(daemon)
        task = daemon.ask(work)
        await asyncio.wait([task, daemon.ended], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise NoAnswer
        try:
            return task.result()
        except ConsensusError as error:
            raise NoAnswer from error
