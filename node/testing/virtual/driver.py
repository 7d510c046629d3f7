"""The replica of a virtual node: stepped on the loop, where the real one has a thread."""

import asyncio
from collections.abc import Sequence
from typing import Any

from consensus.driver import Frames, ReplicaDriver
from consensus.errors import SnapshotInstalled
from consensus.group import Group
from consensus.inbox import Posted, Stop, StreamUp
from consensus.replica import Replica
from consensus.steps import Asked, Input, LinkDown, LinkUp, Output
from storage.ids import NodeId


class VirtualDriver(ReplicaDriver):
    """Crash only, as the real one."""

    _replica: Replica | None = None
    _timer: asyncio.Handle | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._links: set[NodeId] = set()
        self._inputs: list[Input] = []
        self._begin()

    def post(self, given: Posted) -> None:
        assert not isinstance(given, StreamUp), "there are no threads and no streams here"
        if isinstance(given, Stop):
            self._end_replica()
            return
        if isinstance(given, LinkUp):
            self._links.add(given.peer)
        elif isinstance(given, LinkDown):
            self._links.discard(given.peer)
        if self._replica is not None:
            self._inputs.append(given)
            self._plan(0.0)
        elif isinstance(given, Asked):
            self._discard([given.token])

    async def stop(self) -> None:
        self._end_replica()

    def _begin(self) -> None:
        assert self._loop is not None
        with self._store.read() as txn:
            self._machine.check(txn)
        now = self._loop.time()
        self._replica = Replica(self._node_id, self._voters, self._store, self._machine, self._settings, self._rng, now)
        self._inputs = [LinkUp(peer) for peer in sorted(self._links)]
        self._plan(0.0)

    def _end_replica(self) -> None:
        self._replica = None
        if self._timer is not None:
            self._timer.cancel()

    def _plan(self, delay_s: float) -> None:
        """The next step; what was planned before is not later than a deadline that it does not know."""
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._step)

    def _step(self) -> None:
        replica, self._timer = self._replica, None
        assert replica is not None
        assert self._loop is not None
        inputs, self._inputs = self._inputs, []
        now = self._loop.time()
        try:
            output = replica.step(inputs, now, self._say)
        except SnapshotInstalled as installed:
            self._discard([*replica.open_proposals(), *(given.token for given in inputs if isinstance(given, Asked))])
            self._note_installed(installed.index)
            self._begin()
        except Exception as error:
            self._end_replica()
            self._publish((error, True))
        else:
            self._status = output.status
            self._publish(output)
            if self._timer is None:
                self._plan(0.0 if self._inputs else max(output.next_deadline - now, 0.0))

    def _say(self, frames: Frames) -> None:
        self._publish(frames)

    def _publish(self, delivery: Output | Frames | tuple[Exception, bool]) -> None:
        """As the thread does; there is room for all of it."""
        assert self._loop is not None
        self._deliveries.append(delivery)
        if len(self._deliveries) == 1:
            self._loop.call_soon(self._deliver)


class VirtualGroup(Group):
    """Without the thread."""

    def __init__(
        self, node_id: NodeId, voters: Sequence[NodeId], store: Any, machine: Any, transport: Any, **options: Any
    ) -> None:
        super().__init__(node_id, voters, store, machine, transport, **options)
        real = self._driver
        self._driver = VirtualDriver(
            node_id,
            voters,
            store,
            machine,
            self._settings,
            real._on_frames,
            real._on_output,
            real._on_failure,
        )
