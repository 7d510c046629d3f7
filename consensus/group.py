"""What the rest of the daemon uses of consensus: propose a command and know its outcome, read, watch.

On any node. A proposal goes to the leader, wherever that is, and is proposed again over changes of leadership until
its outcome is known or the deadline has passed: commands are idempotent by the ids in them, so proposing twice is safe.
When `propose` returns, the command is applied on *this* node: whoever wrote here reads here what was written.

All methods belong to the event loop that called `start`.
"""

import asyncio
import contextlib
import heapq
import itertools
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from consensus.driver import Frames, ReplicaDriver, is_other, unknown_status
from consensus.engine import Role
from consensus.errors import ProposalFailed, ProposalTimeout, Unavailable
from consensus.inbox import PeerStream, StreamUp
from consensus.limits import FORWARDED_BYTES_MAX, PROPOSALS_IN_FLIGHT_MAX, RaftSettings
from consensus.replica import (
    LinkDown,
    LinkUp,
    Output,
    PeerMessage,
    Propose,
    ReplicaStatus,
    Resolved,
    StateMachine,
    TransferLeadership,
)
from consensus.state import queries
from consensus.state.commands import Answer, AnyCommand, Canary
from consensus.state.encoding import CommandError, encode_command
from consensus.state.events import Numbered
from consensus.state.versions import COMMAND_VERSION, behind
from storage.ids import NodeId
from storage.transactions import Store, Transaction

News = TypeVar("News")

PROPOSE = "propose"
"""The method under which `PeerTransport.request` reaches a peer's `Group.on_request`."""

_RETRY_FIRST_S = 0.02
_RETRY_LAST_S = 0.2
_SWEEP_S = 0.05


class PeerTransport(Protocol):
    """How this node speaks to peers."""

    def send(self, peer: NodeId, payload: bytes) -> bool:
        """A frame, in order or not at all; False if it was dropped. Never blocks."""

    def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> Coroutine[Any, Any, bytes]:
        """The peer's answer. Raises any Exception if there is none."""


class _Forwarded(msgspec.Struct, frozen=True, array_like=True):
    command: bytes
    deadline_s: float


class _Outcome(msgspec.Struct, frozen=True, array_like=True):
    """Error: as in `Resolved`, or `overloaded`, `malformed`, `timeout`, `stopped`."""

    index: int
    answer: Answer | None
    error: str | None


class Group:
    """`on_failure(error, is_final)` reports that the replica failed; if final, this node takes part no more.
    `refuses(command)` answers the code with which a leader turns down a command that a peer has forwarded: `disk_low`,
    or None."""

    def __init__(
        self,
        node_id: NodeId,
        voters: Sequence[NodeId],
        store: Store,
        machine: StateMachine,
        transport: PeerTransport,
        *,
        settings: RaftSettings | None = None,
        on_failure: Callable[[Exception, bool], None] | None = None,
        refuses: Callable[[bytes], str | None] | None = None,
        clock_ms: Callable[[], int] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.node_id = node_id
        self._store = store
        self._transport = transport
        self._report_failure = on_failure
        self._refuses = refuses
        self._clock_ms = clock_ms or (lambda: time.time_ns() // 1_000_000)
        self._driver = ReplicaDriver(
            node_id,
            voters,
            store,
            machine,
            settings or RaftSettings(),
            self._on_frames,
            self._on_output,
            self._on_failure,
            rng,
        )
        self._status = unknown_status(node_id, tuple(sorted(voters)))
        self._tokens = itertools.count(1)
        self._waiting: dict[int, tuple[asyncio.Future[Resolved], float]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._in_flight = 0
        self._applied_waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._changed: asyncio.Future[None] | None = None
        self._barrier_waiters: list[asyncio.Future[int]] = []
        self._barrier_task: asyncio.Task[None] | None = None
        self._event_watchers: list[Callable[[list[Numbered]], None]] = []
        self._status_watchers: list[Callable[[ReplicaStatus], None]] = []
        self._stopped: Unavailable | None = None

    # -- life --

    def start(self) -> None:
        """Links that come up later are told with `on_link_up`; the first election follows."""
        self._driver.start()

    async def stop(self) -> None:
        """Everyone who still waits gets Unavailable `stopped`. Transfer leadership first for a clean handover."""
        self._fail_all(_stopping())
        if self._barrier_task is not None:
            self._barrier_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._barrier_task
        await self._driver.stop()

    # -- proposing --

    async def propose(self, command: AnyCommand, deadline_s: float = 10.0) -> Answer:
        """The answer of the applied command, Applied or Refused, after this node has applied it. Raises ProposalTimeout
        when the outcome was not known in time, Unavailable when it was not proposed at all."""
        try:
            payload = encode_command(command)
        except CommandError as error:
            raise Unavailable(error.code, error.message) from error
        self._admit()
        self._check_version(payload)
        self._in_flight += 1
        until = asyncio.get_running_loop().time() + deadline_s
        try:
            if self._status.role is Role.LEADER:
                # Nearly always enough, and cheaper than the general way.
                outcome = await self._propose_here(payload, until)
                if outcome.error is None:
                    answer: Answer = outcome.answer
                    return answer
            async with asyncio.timeout_at(until):
                return await self._propose_until_known(payload, until)
        except TimeoutError:
            raise ProposalTimeout("no_leader" if self._status.leader is None else "timeout", deadline_s) from None
        finally:
            self._in_flight -= 1

    async def barrier(self, deadline_s: float = 10.0) -> int:
        """An index this node has applied, at or after everything that was answered anywhere before the call: what is
        read here now is linearizable. Callers that come while one barrier is on its way share the next. Raises as
        `propose`."""
        self._check_running()
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._barrier_waiters.append(future)
        if self._barrier_task is None or self._barrier_task.done():
            self._barrier_task = asyncio.create_task(self._run_barriers(deadline_s), name="barriers")
        try:
            async with asyncio.timeout(deadline_s):
                return await future
        except TimeoutError:
            raise ProposalTimeout("no_leader" if self._status.leader is None else "timeout", deadline_s) from None

    async def transfer_leadership(self, timeout_s: float = 2.0) -> bool:
        """Whether this node does not lead at the end. Proposals meanwhile wait for the new leader."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._status.role is Role.LEADER and len(self._status.voters) > 1:
                    self._driver.post(TransferLeadership())
                    await self._wait_for_change(_RETRY_LAST_S)
        except TimeoutError:
            return False
        return self._status.role is not Role.LEADER

    # -- reading and watching --

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """A snapshot of what this node has applied; it may lag behind the leader. Keep it short, never await in it."""
        if self._status.is_quarantined:
            raise _quarantined()
        with self._store.read() as txn:
            yield txn

    def status(self) -> ReplicaStatus:
        """As of the last step."""
        return self._status

    @property
    def inputs_dropped(self) -> int:
        return self._driver.inputs_dropped

    def subscribe_events(self, callback: Callable[[list[Numbered]], None]) -> Callable[[], None]:
        """What each step applied here, in order, from now on. Returns the end of the subscription."""
        self._event_watchers.append(callback)
        return lambda: self._event_watchers.remove(callback)

    def subscribe_status(self, callback: Callable[[ReplicaStatus], None]) -> Callable[[], None]:
        """When role, term, leader, links or quarantine change. Returns the end of the subscription."""
        self._status_watchers.append(callback)
        return lambda: self._status_watchers.remove(callback)

    async def wait_applied(self, index: int) -> None:
        """Until this node has applied `index`. No deadline of its own."""
        if self._status.applied_index >= index:
            return
        self._check_running()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._applied_waiters, (index, next(self._tokens), future))
        self._driver.wanted_index = self._applied_waiters[0][0]
        await future

    # -- what the mesh brings --

    def on_peer_message(self, peer: NodeId, payload: bytes) -> None:
        self._driver.post(PeerMessage(peer, payload))

    def on_link_up(self, peer: NodeId) -> None:
        self._driver.post(LinkUp(peer))

    def on_link_down(self, peer: NodeId, closed_by_peer: bool) -> None:
        """`closed_by_peer`: by EOF or reset. If it was the leader, an election follows at once."""
        self._driver.post(LinkDown(peer, closed_by_peer))

    def on_stream(self, peer: NodeId, stream: PeerStream) -> None:
        """A connection for frames alone: the replica's thread owns it from now on, and closes it with the link."""
        self._driver.post(StreamUp(peer, stream))

    async def on_request(self, peer: NodeId, payload: bytes) -> bytes:
        """A proposal forwarded by a peer. It is proposed here or not at all, never forwarded on."""
        return _encode_outcome(await self._answer_forwarded(payload))

    async def _answer_forwarded(self, payload: bytes) -> _Outcome:
        if len(payload) > FORWARDED_BYTES_MAX:
            return _Outcome(0, None, "too_large")
        try:
            forwarded = _decode_forwarded(payload)
        except msgspec.DecodeError:
            return _Outcome(0, None, "malformed")
        try:
            self._admit()
            self._check_version(forwarded.command)
        except Unavailable as error:
            return _Outcome(0, None, error.code)
        if self._status.role is not Role.LEADER:
            return _Outcome(0, None, "not_leader")
        if self._refuses is not None and (code := self._refuses(forwarded.command)) is not None:
            return _Outcome(0, None, code)
        self._in_flight += 1
        try:
            until = asyncio.get_running_loop().time() + min(max(forwarded.deadline_s, 0.0), 60.0)
            resolved = await self._propose_here(forwarded.command, until)
        except TimeoutError:
            return _Outcome(0, None, "timeout")
        except Unavailable as error:
            return _Outcome(0, None, error.code)
        finally:
            self._in_flight -= 1
        return _Outcome(resolved.index, resolved.answer, resolved.error)

    # -- proposing, inside --

    def _check_running(self) -> None:
        if self._stopped is not None:
            raise self._stopped
        if self._status.is_quarantined:
            raise _quarantined()

    def _admit(self) -> None:
        self._check_running()
        if self._in_flight >= PROPOSALS_IN_FLIGHT_MAX:
            raise Unavailable("overloaded", f"{PROPOSALS_IN_FLIGHT_MAX} proposals are in flight; try again in a moment")

    def _check_version(self, payload: bytes) -> None:
        """What a member cannot apply would stop it: it is not proposed before all can."""
        version = payload[0] if payload else 1
        if version == 1:
            return
        with self._store.read() as txn:
            names = [f"{row.name} (meshnode {row.software})" for row in behind(queries.members(txn), version)]
        if version > COMMAND_VERSION:
            names.append("the node that was asked")
        if names:
            raise Unavailable(
                "newer_command",
                f"a command of version {version} is not known to {', '.join(names)}: upgrade first, or remove from the "
                "mesh what will not come back",
            )

    async def _propose_until_known(self, payload: bytes, until: float) -> Answer:
        """Runs inside the caller's deadline."""
        loop = asyncio.get_running_loop()
        pause_s = _RETRY_FIRST_S
        while True:
            self._check_running()
            leader = self._status.leader
            outcome: Resolved | _Outcome | None = None
            if self._status.role is Role.LEADER:
                outcome = await self._propose_here(payload, until)
            elif leader is not None:
                outcome = await self._forward(leader, payload, max(until - loop.time(), 0.001))
            if outcome is not None and outcome.error is None and outcome.answer is not None:
                await self.wait_applied(outcome.index)
                answer: Answer = outcome.answer
                return answer
            match None if outcome is None else outcome.error:
                case "newer_command" as code:
                    raise Unavailable(code, "the leader, or a node that it knows of, must be upgraded first")
                case "too_large" | "malformed" as code:
                    raise Unavailable(code, "the command was refused before it was proposed; do not repeat it")
                case "disk_low" as code:
                    raise Unavailable(code, "the disk of the leader is nearly full: it takes no new sessions")
                case "quarantined" if leader == self.node_id:
                    raise _quarantined()
            # Unknown, or nobody leads: again when that changes, or soon.
            await self._wait_for_change(pause_s)
            pause_s = min(pause_s * 2, _RETRY_LAST_S)

    def _propose_here(self, payload: bytes, until: float) -> asyncio.Future[Resolved]:
        """Fails with TimeoutError a little after `until`."""
        if self._stopped is not None:
            raise self._stopped
        token = next(self._tokens)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Resolved] = loop.create_future()
        self._waiting[token] = (future, until)
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
        self._driver.post(Propose(token, payload))
        return future

    def _sweep(self) -> None:
        """One timer for all proposals: a timer each would cost as much as the proposal."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        over = [token for token, (future, until) in self._waiting.items() if until <= now or future.done()]
        for token in over:
            future, _ = self._waiting.pop(token)
            if not future.done():
                future.set_exception(TimeoutError())
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep) if self._waiting else None

    async def _forward(self, leader: NodeId, payload: bytes, timeout_s: float) -> _Outcome | None:
        """None: no answer, so the outcome is unknown."""
        request = _encode_forwarded(_Forwarded(payload, timeout_s))
        try:
            return _decode_outcome(await self._transport.request(leader, PROPOSE, request, timeout_s))
        except Exception:
            # Whatever a transport raises, and whatever a peer answers: it is safe to propose again.
            return None

    async def _run_barriers(self, deadline_s: float) -> None:
        """One canary after the other, as long as somebody waits. A caller's canary is proposed after its call."""
        while self._barrier_waiters:
            waiters, self._barrier_waiters = self._barrier_waiters, []
            command = Canary(node_id=self.node_id, payload=b"", at_ms=self._clock_ms())
            try:
                answer = await self.propose(command, deadline_s)
            except (ProposalFailed, asyncio.CancelledError) as error:
                failure = error if isinstance(error, ProposalFailed) else _stopping()
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_exception(failure)
                if failure is not error:
                    raise
            else:
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(answer.index)

    async def _wait_for_change(self, timeout_s: float) -> None:
        """Of leadership or links; returns after `timeout_s` anyway."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._changed], timeout=timeout_s)

    # -- what the replica brings --

    def _on_frames(self, frames: Frames) -> None:
        for peer, frame in frames:
            self._transport.send(peer, frame)

    def _on_output(self, output: Output) -> None:
        self._on_frames(output.messages)
        old, self._status = self._status, output.status
        waiting = self._waiting
        for resolved in output.resolved:
            waiter = waiting.pop(resolved.token, None)
            if waiter is not None and not waiter[0].done():
                waiter[0].set_result(resolved)
        waiters, applied = self._applied_waiters, output.status.applied_index
        while waiters and waiters[0][0] <= applied:
            done = heapq.heappop(waiters)[2]
            if not done.done():
                done.set_result(None)
        self._driver.wanted_index = waiters[0][0] if waiters else None
        if output.events:
            _tell(self._event_watchers, output.events)
        if is_other(old, output.status):
            if self._changed is not None and not self._changed.done():
                self._changed.set_result(None)
            _tell(self._status_watchers, output.status)

    def _on_failure(self, error: Exception, is_final: bool) -> None:
        if is_final:
            self._fail_all(
                Unavailable("replica_stopped", f"this node's replica has stopped: {error}; ask another node")
            )
        if self._report_failure is not None:
            self._report_failure(error, is_final)

    def _fail_all(self, error: Unavailable) -> None:
        self._stopped = error
        waiting: list[asyncio.Future[Any]] = [*self._barrier_waiters]
        waiting.extend(future for future, _ in self._waiting.values())
        if self._sweeper is not None:
            self._sweeper.cancel()
        waiting.extend(waiter for _, _, waiter in self._applied_waiters)
        self._waiting.clear()
        self._barrier_waiters.clear()
        self._applied_waiters.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)


def _stopping() -> Unavailable:
    return Unavailable("stopped", "this node is stopping; ask another node")


def _tell(watchers: list[Callable[[News], None]], news: News) -> None:
    """A watcher's fault is reported to the loop; it is not the fault of the others, nor of what is still to be told."""
    for watch in tuple(watchers):
        try:
            watch(news)
        except Exception as error:
            story = {"message": "a watcher of the replicated state failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(story)


def _quarantined() -> Unavailable:
    return Unavailable(
        "quarantined",
        "a majority of the voters has other tables than this node; ask another node, and replace this node's data "
        "directory",
    )


_encode_forwarded = msgspec.msgpack.Encoder().encode
_encode_outcome = msgspec.msgpack.Encoder().encode
_decode_forwarded = msgspec.msgpack.Decoder(_Forwarded).decode
_decode_outcome = msgspec.msgpack.Decoder(_Outcome).decode
