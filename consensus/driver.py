"""The thread that owns a replica: it waits for inputs or the replica's deadline, steps it, and hands what came out to
the event loop, in order.

The thread is the store's only writer, so a disk wait never blocks the loop. Crash only: when a step raises, the replica
is thrown away and a new one is made from the store; proposals it held are answered `discarded`, links that are up are
told to the new one. A full disk is waited for; a failed disk, a store that is damaged, or a failure that comes back
again and again ends it for good, and `on_failure` says why.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeAlias

import msgspec

from consensus.engine import Role
from consensus.limits import DISK_FULL_RETRY_S, INPUTS_PER_STEP_MAX, INPUTS_WAITING_MAX, RESTARTS_MAX, RaftSettings
from consensus.replica import (
    Input,
    LinkDown,
    LinkUp,
    Output,
    PeerMessage,
    Propose,
    Replica,
    ReplicaStatus,
    Resolved,
    StateMachine,
)
from storage.errors import DiskFull, MapExhausted, StorageError
from storage.ids import NodeId
from storage.transactions import Store

Frames: TypeAlias = list[tuple[NodeId, bytes]]
"""For peers, in order."""


class _Stop:
    """Ends the thread."""


class ReplicaDriver:
    """`on_frames(frames)`, `on_output(output)` and `on_failure(error, is_final)` are called on the loop that called
    `start`, in the order in which the replica spoke."""

    def __init__(
        self,
        node_id: NodeId,
        voters: Sequence[NodeId],
        store: Store,
        machine: StateMachine,
        settings: RaftSettings,
        on_frames: Callable[[Frames], None],
        on_output: Callable[[Output], None],
        on_failure: Callable[[Exception, bool], None],
        rng: random.Random | None = None,
    ) -> None:
        self._node_id = node_id
        self._voters = tuple(sorted(voters))
        self._store = store
        self._machine = machine
        self._settings = settings
        self._on_frames = on_frames
        self._on_output = on_output
        self._on_failure = on_failure
        self._rng = rng or random.Random()  # noqa: S311  # spreads elections in time, keeps no secret
        self._queue: SimpleQueue[Input | _Stop] = SimpleQueue()
        self._deliveries: deque[Output | Frames | tuple[Exception, bool]] = deque()
        self._lock = threading.Lock()  # guards `_is_scheduled`
        self._is_scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self.inputs_dropped = 0
        """Messages of peers that were shed because the thread did not keep up."""
        # Of the thread only:
        self._links: set[NodeId] = set()
        self._tokens: set[int] = set()
        self._status = unknown_status(node_id, self._voters)

    def start(self) -> None:
        """On the event loop. The replica is constructed on the thread; what is wrong with it goes to `on_failure`."""
        assert self._thread is None, "started twice"
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=f"replica-{self._node_id[:8]}")
        self._thread.start()

    def post(self, given: Input) -> None:
        """From any thread. Kept in order. Never blocks."""
        if type(given) is PeerMessage and self._queue.qsize() >= INPUTS_WAITING_MAX:
            self.inputs_dropped += 1
            return
        self._queue.put(given)

    async def stop(self) -> None:
        """Returns when the thread has ended; what it had committed has been delivered. Harmless when not started."""
        if self._thread is None or self._ended is None:
            return
        self._queue.put(_Stop())
        await asyncio.shield(self._ended)
        self._thread.join()
        self._deliver()

    # -- on the thread --

    def _run(self) -> None:
        try:
            self._supervise()
        finally:
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._end)

    def _supervise(self) -> None:
        """Owns the life of replicas: that is why it catches everything."""
        failures = 0
        while True:
            pause_s = 0.0
            started_at = time.monotonic()
            try:
                self._drive()
                return
            except MapExhausted as error:
                failures = self._count(failures, started_at)
                if failures > RESTARTS_MAX:
                    self._give_up(error)
                    return
            except DiskFull as error:
                pause_s = DISK_FULL_RETRY_S
                self._publish((error, False))
            except StorageError as error:
                self._give_up(error)
                return
            except Exception as error:
                failures = self._count(failures, started_at)
                if failures > RESTARTS_MAX:
                    self._give_up(error)
                    return
                pause_s = 0.05 * 2**failures
                self._publish((error, False))
            self._discard()
            if not self._wait(pause_s):
                return

    @staticmethod
    def _count(failures: int, started_at: float) -> int:
        """Failures in a row: a replica that ran for a minute was sound."""
        return 1 if time.monotonic() - started_at > 60 else failures + 1

    def _drive(self) -> None:
        """Until told to stop. Raises what a step raises."""
        now = time.monotonic()
        replica = Replica(self._node_id, self._voters, self._store, self._machine, self._settings, self._rng, now)
        inputs: list[Input] = [LinkUp(peer) for peer in sorted(self._links)]
        queue = self._queue
        get, waiting, tokens = queue.get, queue.qsize, self._tokens
        deadline = now
        while True:
            # Waiting first and draining after takes in everything that has arrived meanwhile.
            count = waiting()
            if not count:
                timeout = deadline - time.monotonic()
                if timeout > 0:
                    try:
                        first = get(timeout=timeout)
                    except Empty:
                        pass
                    else:
                        if not self._note(first, inputs):
                            return
                    count = waiting()
            for _ in range(min(count, INPUTS_PER_STEP_MAX)):
                if not self._note(get(), inputs):
                    return
            output = replica.step(inputs, time.monotonic(), self._publish_early)
            inputs = []
            for resolved in output.resolved:
                tokens.discard(resolved.token)
            deadline = output.next_deadline
            self._status = output.status
            self._publish(output)

    def _note(self, given: Input | _Stop, inputs: list[Input]) -> bool:
        """Remember what the next replica will have to be told. False: stop."""
        if isinstance(given, _Stop):
            return False
        if isinstance(given, Propose):
            self._tokens.add(given.token)
        elif isinstance(given, LinkUp):
            self._links.add(given.peer)
        elif isinstance(given, LinkDown):
            self._links.discard(given.peer)
        inputs.append(given)
        return True

    def _wait(self, pause_s: float) -> bool:
        """Let time pass; proposals are answered, messages are lost. False: stop."""
        until = time.monotonic() + pause_s
        while True:
            try:
                given = self._queue.get(timeout=max(until - time.monotonic(), 0))
            except Empty:
                return True
            if not self._note(given, []):
                return False
            if self._tokens:
                self._discard()

    def _discard(self) -> None:
        """There is no replica now: its proposals have no known outcome, and it leads no more."""
        resolved = [Resolved(token, 0, None, "discarded") for token in sorted(self._tokens)]
        self._tokens.clear()
        self._status = msgspec.structs.replace(
            self._status, role=Role.FOLLOWER, leader=None, connected=(), match_index={}
        )
        self._publish(Output([], resolved, [], [], self._status, time.monotonic()))

    def _give_up(self, error: Exception) -> None:
        self._discard()
        self._publish((error, True))

    def _publish_early(self, frames: Frames) -> None:
        """On its way while the disk is written: the disk wait leaves the interpreter to the loop."""
        self._publish(frames)

    def _publish(self, delivery: Output | Frames | tuple[Exception, bool]) -> None:
        self._deliveries.append(delivery)
        with self._lock:
            if self._is_scheduled:
                return
            self._is_scheduled = True
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._deliver)

    # -- on the loop --

    def _deliver(self) -> None:
        with self._lock:
            self._is_scheduled = False
        while self._deliveries:
            delivery = self._deliveries.popleft()
            if isinstance(delivery, Output):
                self._on_output(delivery)
            elif isinstance(delivery, list):
                self._on_frames(delivery)
            else:
                self._on_failure(*delivery)

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


def unknown_status(node_id: NodeId, voters: tuple[NodeId, ...]) -> ReplicaStatus:
    """Until the replica has made its first step."""
    return ReplicaStatus(node_id, Role.FOLLOWER, 0, None, 0, 0, 0, 0, voters, (), {}, False, {})
