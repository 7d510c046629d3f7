"""The thread that owns a replica: it waits for inputs or the replica's deadline, steps it, says what peers are to
hear, and hands what came out to the event loop, in order.

The thread is the store's only writer, so a disk wait never blocks the loop. Peers that have a stream are heard and
answered by the thread itself; the loop is woken only for what somebody waits for. Crash only: when a step raises, the
replica is thrown away and a new one is made from the store; proposals it held are answered `discarded`, links that are
up are told to the new one. The same happens when it has installed a snapshot. A full disk is waited for; a failed disk,
a store that is damaged, or a failure that comes back again and again ends it for good, and `on_failure` says why.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from consensus.engine import Role
from consensus.errors import ApplyFailed, SnapshotInstalled, UpgradeRequired
from consensus.inbox import Inbox, Posted, Stop
from consensus.limits import (
    DELIVERIES_MAX,
    DISK_FULL_RETRY_S,
    DISK_STALL_S,
    LOOP_STALL_S,
    RESTARTS_MAX,
    STATUS_DELAY_S,
    RaftSettings,
)
from consensus.replica import Replica
from consensus.snapshot import Quarantine
from consensus.steps import Asked, Input, LinkUp, Output, ReplicaStatus, Resolved, StateMachine, TransferLeadership
from storage.errors import DiskFull, MapExhausted, StorageError
from storage.ids import NodeId
from storage.transactions import Store

Frames: TypeAlias = list[tuple[NodeId, bytes]]
"""For peers, in order."""


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
        self._inbox = Inbox()
        self._deliveries: deque[Output | Frames | tuple[Exception, bool]] = deque()
        self._lock = threading.Lock()  # guards `_is_scheduled`
        self._is_scheduled = False
        self._scheduled_at = 0.0
        self._stalled_at = 0.0
        self._has_room = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self.wanted_index: int | None = None
        """The lowest index for whose application somebody waits; set on the loop."""
        # Written by the thread only:
        self._status = unknown_status(node_id, self._voters)
        self._first_inputs: list[Input] = []
        """Of the next replica."""
        self._unapplied_index = 0
        self._stepping_since: float | None = None
        self._held: Output | None = None
        self._told_at = 0.0

    def start(self) -> None:
        """On the event loop. The replica is constructed on the thread; what is wrong with it goes to `on_failure`."""
        assert self._thread is None, "started twice"
        self._loop = asyncio.get_running_loop()
        self._inbox.open()
        self._ended = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=f"replica-{self._node_id[:8]}")
        self._thread.start()

    def post(self, given: Posted) -> None:
        """From any thread. Kept in order. Never blocks."""
        self._inbox.post(given)

    @property
    def status(self) -> ReplicaStatus:
        """Of the last step, which the loop may not have been told yet. From any thread."""
        return self._status

    @property
    def inputs_dropped(self) -> int:
        """Messages of peers that were shed because the thread did not keep up."""
        return self._inbox.dropped

    def is_stalled(self, for_s: float | None = None) -> bool:
        """A step takes so long that the disk must hang. From any thread."""
        since = self._stepping_since
        return since is not None and time.monotonic() - since > (DISK_STALL_S if for_s is None else for_s)

    async def stop(self) -> None:
        """Returns when the thread has ended; what it had committed has been delivered. Harmless when not started."""
        if self._thread is None or self._ended is None:
            return
        self._inbox.post(Stop())
        await asyncio.shield(self._ended)
        self._thread.join()
        self._deliver()

    # -- on the thread --

    def _run(self) -> None:
        try:
            self._supervise()
        finally:
            self._inbox.close()
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
            except SnapshotInstalled as installed:
                failures = 0
                self._note_installed(installed.index)
            except ApplyFailed as error:
                # Once may be chance; the same again is not, and starting for ever would help nobody.
                if error.index == self._unapplied_index:
                    self._first_inputs = [Quarantine(str(error))]
                self._unapplied_index = error.index
                self._publish((error, False))
            except MapExhausted as error:
                failures = self._count(failures, started_at)
                if failures > RESTARTS_MAX:
                    self._give_up(error)
                    return
            except DiskFull as error:
                pause_s = DISK_FULL_RETRY_S
                self._publish((error, False))
            except (StorageError, UpgradeRequired) as error:
                self._give_up(error)
                return
            except Exception as error:
                failures = self._count(failures, started_at)
                if failures > RESTARTS_MAX:
                    self._give_up(error)
                    return
                pause_s = 0.05 * 2**failures
                self._publish((error, False))
            if not self._pause(pause_s):
                return

    @staticmethod
    def _count(failures: int, started_at: float) -> int:
        """Failures in a row: a replica that ran for a minute was sound."""
        return 1 if time.monotonic() - started_at > 60 else failures + 1

    def _drive(self) -> None:
        """Until told to stop. Raises what a step raises."""
        now = time.monotonic()
        with self._store.read() as txn:
            self._machine.check(txn)
        replica = Replica(self._node_id, self._voters, self._store, self._machine, self._settings, self._rng, now)
        inbox, monotonic = self._inbox, time.monotonic
        inputs: list[Input] | None = [*self._first_inputs, *(LinkUp(peer) for peer in sorted(inbox.links))]
        self._first_inputs = []
        deadline = now
        try:
            while inputs is not None:
                now = monotonic()
                if inputs or now >= deadline:
                    self._stepping_since = now
                    output = replica.step(inputs, now, self._say)
                    self._stepping_since = None
                    inputs = []
                    deadline = output.next_deadline
                    self._tell(output, now)
                    if output.status.role is Role.LEADER and self._is_loop_stalled(now):
                        inbox.post(TransferLeadership())
                if self._held is not None:
                    if now - self._told_at >= STATUS_DELAY_S:
                        self._flush_held()
                    else:
                        deadline = min(deadline, self._told_at + STATUS_DELAY_S)
                inputs = inbox.take(deadline)
        except Exception:
            self._stepping_since = None
            self._discard(replica.open_proposals())
            self._discard(given.token for given in inputs or () if isinstance(given, Asked))
            raise

    def _is_loop_stalled(self, now: float) -> bool:
        """The loop serves nobody, so this node should not lead, although its thread could go on. True once in a
        while."""
        if not self._is_scheduled or now - max(self._scheduled_at, self._stalled_at) <= LOOP_STALL_S:
            return False
        self._stalled_at = now
        return True

    def _say(self, frames: Frames) -> None:
        """To peers, now: while the disk is written they read it."""
        left = self._inbox.send(frames)
        if left:
            self._publish(left)

    def _tell(self, output: Output, now: float) -> None:
        """What peers are to hear, then what the loop is to know. It is woken at once only if somebody waits for it."""
        if output.messages:
            output = msgspec.structs.replace(output, messages=self._inbox.send(output.messages))
        old, self._status = self._status, output.status
        wanted = self.wanted_index
        is_urgent = (
            output.resolved
            or output.events
            or output.messages
            or (wanted is not None and output.status.applied_index >= wanted)
            or is_other(old, output.status)
        )
        if is_urgent:
            self._held, self._told_at = None, now
            self._publish(output)
        else:
            self._held = output

    def _flush_held(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._told_at = time.monotonic()
            self._publish(held)

    def _pause(self, pause_s: float) -> bool:
        """Let time pass; proposals are answered, messages are lost. False: stop."""
        until = time.monotonic() + pause_s
        while True:
            inputs = self._inbox.take(until)
            if inputs is None:
                return False
            self._discard(given.token for given in inputs if isinstance(given, Asked))
            if time.monotonic() >= until:
                return True

    def _discard(self, tokens: Iterable[int]) -> None:
        """There is no replica now: what was asked of it has no known outcome, and it leads no more."""
        self._held = None
        resolved = [Resolved(token, 0, None, "discarded") for token in tokens]
        self._status = msgspec.structs.replace(
            self._status, role=Role.FOLLOWER, leader=None, connected=(), match_index={}
        )
        self._publish(Output([], resolved, [], self._status, time.monotonic()))

    def _note_installed(self, index: int) -> None:
        installed = msgspec.structs.replace(
            self._status, applied_index=index, is_quarantined=False, quarantine_reason="", needs_snapshot=False
        )
        self._status = installed
        told = msgspec.structs.replace(installed, installed_index=index)
        self._publish(Output([], [], [], told, time.monotonic()))

    def _give_up(self, error: Exception) -> None:
        self._publish((error, True))

    def _publish(self, delivery: Output | Frames | tuple[Exception, bool]) -> None:
        assert self._loop is not None
        while len(self._deliveries) >= DELIVERIES_MAX and not self._loop.is_closed():
            self._has_room.clear()
            self._has_room.wait(0.1)
        self._deliveries.append(delivery)
        with self._lock:
            if self._is_scheduled:
                return
            self._is_scheduled = True
            self._scheduled_at = time.monotonic()
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
        self._has_room.set()

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


def unknown_status(node_id: NodeId, voters: tuple[NodeId, ...]) -> ReplicaStatus:
    """Until the replica has made its first step."""
    return ReplicaStatus(node_id, Role.FOLLOWER, 0, None, 0, 0, 0, 0, voters, (), {}, False, None, {})


def is_other(old: ReplicaStatus, new: ReplicaStatus) -> bool:
    """Whether more has changed than how far it is."""
    return (
        old.role is not new.role
        or old.term != new.term
        or old.leader != new.leader
        or old.connected != new.connected
        or old.is_quarantined != new.is_quarantined
        or old.needs_snapshot != new.needs_snapshot
        or old.withdrawn != new.withdrawn
        or old.configuration != new.configuration
        or new.installed_index != 0
    )
