"""What the rest of the daemon uses of consensus: propose a command and know its outcome, read, watch.

On any node. A proposal goes to the leader, wherever that is, and is proposed again over changes of leadership until
its outcome is known or the deadline has passed: commands are idempotent by the ids in them, so proposing twice is safe.
When `propose` returns, the command is applied on *this* node: whoever wrote here reads here what was written.

All methods belong to the event loop that called `start`.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import msgspec

from consensus.admission import check_version, quarantined, read_soundly, refusal_of
from consensus.courier import (
    Courier,
    Outcome,
    Outcomes,
    PeerTransport,
    ReadAnswer,
    decode_proposals,
    decode_question,
    encode,
)
from consensus.driver import Frames, ReplicaDriver, is_other, unknown_status
from consensus.engine import Role
from consensus.errors import ProposalTimeout, Unavailable
from consensus.inbox import PeerStream, StreamUp
from consensus.limits import FORWARDED_BYTES_MAX, PROPOSALS_IN_FLIGHT_MAX, READ_ANSWER_S, RaftSettings
from consensus.membership import Change
from consensus.snapshot import AboutSnapshots
from consensus.state.commands import Answer, AnyCommand
from consensus.state.encoding import CommandError, encode_command
from consensus.state.events import Numbered
from consensus.steps import (
    Asked,
    LinkDown,
    LinkUp,
    Output,
    PeerMessage,
    Propose,
    ProposeChange,
    ReadIndex,
    ReplicaStatus,
    Resolved,
    StateMachine,
    TransferLeadership,
)
from consensus.waiting import Batch, Deadlines, IndexWaiters, SharedQuestion, tell
from storage.ids import NodeId
from storage.transactions import Store, Transaction

_RETRY_FIRST_S = 0.02
_RETRY_LAST_S = 0.2
_DEADLINE_S_MAX = 60.0
"""Of what a peer asks."""


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
        rng: random.Random | None = None,
    ) -> None:
        self.node_id = node_id
        self._store = store
        self._transport = transport
        self._report_failure = on_failure
        self._refuses = refuses or (lambda command: None)
        self._settings = settings or RaftSettings()
        self._driver = ReplicaDriver(
            node_id,
            voters,
            store,
            machine,
            self._settings,
            self._on_frames,
            self._on_output,
            self._on_failure,
            rng,
        )
        self._told = unknown_status(node_id, tuple(sorted(voters)))
        """As of the last output; `status` may be ahead of it."""
        self._tokens = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Resolved] | Batch] = {}
        """By token."""
        self._in_flight = 0
        self._deadlines = Deadlines(self._forget_expired)
        self._applied = IndexWaiters()
        self._changed: asyncio.Future[None] | None = None
        self._courier = Courier(transport)
        self._barriers = SharedQuestion(self._ask_confirmed, self._answer_when_applied, self._pause)
        self._catching_up = SharedQuestion(self._ask_leader, self._answer_when_applied, self._pause)
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
        await self._barriers.close()
        await self._catching_up.close()
        await self._courier.close()
        await self._driver.stop()

    # -- proposing --

    async def propose(self, command: AnyCommand, deadline_s: float = 10.0) -> Answer:
        """The answer of the applied command, Applied or Refused, after this node has applied it. Raises ProposalTimeout
        when the outcome was not known in time, Unavailable when it was not proposed at all."""
        try:
            payload = encode_command(command)
        except CommandError as error:
            raise Unavailable(error.code, error.message) from error
        self._admit(1)
        check_version(self._store, payload)
        self._in_flight += 1
        until = asyncio.get_running_loop().time() + deadline_s
        try:
            if self.status().role is Role.LEADER:
                # Nearly always enough, and cheaper than the general way.
                outcome = await self._post(Propose(next(self._tokens), payload), until)
                if outcome.error is None:
                    answer: Answer = outcome.answer
                    return answer
            return await self._propose_until_known(payload, until)
        except TimeoutError:
            raise self._timeout(deadline_s) from None
        finally:
            self._in_flight -= 1

    def change(self, change: Change, until: float) -> "asyncio.Future[Resolved]":
        """Its end, if this node leads; see `consensus.changes` for any node. TimeoutError a little after `until`."""
        return self._post(ProposeChange(next(self._tokens), change), until)

    async def transfer_leadership(self, timeout_s: float = 2.0) -> bool:
        """Whether this node does not lead at the end. Proposals meanwhile wait for the new leader."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.status().role is Role.LEADER and len(self.status().voters) > 1:
                    self._driver.post(TransferLeadership())
                    await self._wait_for_change(_RETRY_LAST_S)
        except TimeoutError:
            return False
        return self.status().role is not Role.LEADER

    # -- reading and watching --

    async def barrier(self, deadline_s: float = 10.0) -> int:
        """An index this node has applied, at or after everything that was answered anywhere before the call: what is
        read here now is linearizable. The leader has proved meanwhile that it led; nothing was written. Raises as
        `propose`."""
        return await self._wait_to_read(self._barriers, deadline_s)

    async def catch_up(self, deadline_s: float = 10.0) -> int:
        """An index this node has applied, at or after what the leader had applied when it was asked. The leader proves
        nothing: one that was replaced without knowing answers too, for `leader_fallback_s` at most. Raises as
        `propose`."""
        return await self._wait_to_read(self._catching_up, deadline_s)

    def age_s(self) -> float | None:
        """For how long something may have been acknowledged elsewhere that is not applied here; None: not known since
        the start. See `consensus.reads.Reads.fresh_at` for what it takes as a sign of life. A leader counts as fresh
        for an election timeout after a majority has answered it."""
        status = self.status()
        age_s = max(time.monotonic() - status.fresh_at, 0.0)
        if status.role is Role.LEADER and age_s < self._settings.election_min_s:
            return 0.0
        return None if age_s == float("inf") else age_s

    def read(self) -> AbstractContextManager[Transaction]:
        """A snapshot of what this node has applied; it may lag behind the leader. Keep it short, never await in it."""
        if self.status().is_quarantined:
            raise quarantined()
        return read_soundly(self._store, self.post)

    def status(self) -> ReplicaStatus:
        """As of the last step. What it applied can be read; its events may not have been told yet."""
        return self._driver.status

    def is_stalled(self, for_s: float | None = None) -> bool:
        """Whether the disk hangs, for so long: this node is not to be trusted with opinions of others."""
        return self._driver.is_stalled(for_s)

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

    def post(self, given: AboutSnapshots) -> None:
        """About snapshots; the replica acts on it soon."""
        self._driver.post(given)

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
        """Proposals forwarded by a peer. They are proposed here or not at all, never forwarded on."""
        return encode(await self._answer_proposals(payload))

    async def on_read_request(self, peer: NodeId, payload: bytes) -> bytes:
        """How far must a reader see? Answered by the leader alone."""
        return encode(await self._answer_question(payload))

    async def _answer_proposals(self, payload: bytes) -> Outcomes:
        if len(payload) > FORWARDED_BYTES_MAX:
            return Outcomes([], "too_large")
        try:
            proposals = decode_proposals(payload)
        except msgspec.DecodeError:
            return Outcomes([], "malformed")
        count = len(proposals.commands)
        try:
            self._admit(count)
        except Unavailable as error:
            return Outcomes([], error.code)
        if self.status().role is not Role.LEADER:
            return Outcomes([], "not_leader")
        refused = [self._refusal(command) for command in proposals.commands]
        welcome = [command for command, code in zip(proposals.commands, refused, strict=True) if code is None]
        self._in_flight += count
        try:
            known = iter(await self._propose_all(welcome, self._until(proposals.deadline_s)))
        except TimeoutError:
            return Outcomes([], "timeout")
        except Unavailable as error:
            return Outcomes([], error.code)
        finally:
            self._in_flight -= count
        return Outcomes([_outcome(next(known)) if code is None else Outcome(0, None, code) for code in refused])

    def _refusal(self, command: bytes) -> str | None:
        try:
            check_version(self._store, command)
            return self._refuses(command)
        except Unavailable as error:
            return error.code

    async def _answer_question(self, payload: bytes) -> ReadAnswer:
        try:
            question = decode_question(payload)
        except msgspec.DecodeError:
            return ReadAnswer(0, "malformed")
        if self._stopped is not None:
            return ReadAnswer(0, self._stopped.code)
        status = self.status()
        if status.role is not Role.LEADER:
            return ReadAnswer(0, "not_leader")
        if not question.is_confirmed:
            return ReadAnswer(status.applied_index, None)
        try:
            resolved = await self._confirm(self._until(question.deadline_s))
        except TimeoutError:
            return ReadAnswer(0, "timeout")
        except Unavailable as error:
            return ReadAnswer(0, error.code)
        return ReadAnswer(resolved.index, resolved.error)

    @staticmethod
    def _until(deadline_s: float) -> float:
        return asyncio.get_running_loop().time() + min(max(deadline_s, 0.0), _DEADLINE_S_MAX)

    # -- proposing, inside --

    def _check_running(self) -> None:
        if self._stopped is not None:
            raise self._stopped
        if self.status().is_quarantined:
            raise quarantined()

    def _admit(self, count: int) -> None:
        self._check_running()
        if self._in_flight + count > PROPOSALS_IN_FLIGHT_MAX:
            raise Unavailable("overloaded", f"{PROPOSALS_IN_FLIGHT_MAX} proposals are in flight; try again in a moment")

    def _timeout(self, deadline_s: float) -> ProposalTimeout:
        return ProposalTimeout("no_leader" if self.status().leader is None else "timeout", deadline_s)

    async def _propose_until_known(self, payload: bytes, until: float) -> Answer:
        """Raises TimeoutError a little after `until`."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            self._check_running()
            status = self.status()
            outcome: Resolved | Outcome | None = None
            if status.role is Role.LEADER:
                outcome = await self._post(Propose(next(self._tokens), payload), until)
            elif status.leader is not None:
                asked = self._courier.forward(payload, until)
                self._deadlines.add(asked, until)
                outcome = await asked
            if outcome is not None and outcome.error is None and outcome.answer is not None:
                await self._wait_applied(outcome.index, until)
                answer: Answer = outcome.answer
                return answer
            if outcome is not None and outcome.error is not None:
                refusal = refusal_of(outcome.error)
                if outcome.error == "quarantined" and status.leader == self.node_id:
                    refusal = quarantined()
                if refusal is not None:
                    raise refusal
            if loop.time() >= until:
                raise TimeoutError
            # Unknown, or nobody leads: again when that changes, or soon.
            await self._pause(failures, until)
            failures += 1

    def _post(self, given: Asked, until: float) -> "asyncio.Future[Resolved]":
        """Its end. Fails with TimeoutError a little after `until`."""
        if self._stopped is not None:
            raise self._stopped
        future: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()
        self._waiting[given.token] = future
        self._deadlines.add(future, until)
        self._driver.post(given)
        return future

    def _propose_all(self, commands: list[bytes], until: float) -> "asyncio.Future[list[Resolved]]":
        """Their ends, in order. Fails with TimeoutError a little after `until`."""
        if self._stopped is not None:
            raise self._stopped
        batch = Batch(asyncio.get_running_loop().create_future(), len(commands))
        self._deadlines.add(batch.future, until)
        for command in commands:
            token = next(self._tokens)
            batch.expect(token)
            self._waiting[token] = batch
            self._driver.post(Propose(token, command))
        return batch.future

    def _forget_expired(self) -> None:
        waiting = self._waiting
        for token in [token for token, waiter in waiting.items() if waiter.done()]:
            del waiting[token]

    # -- reading, inside --

    async def _wait_to_read(self, question: SharedQuestion, deadline_s: float) -> int:
        self._check_running()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        question.join(future)
        self._deadlines.add(future, loop.time() + deadline_s)
        try:
            return await future
        except TimeoutError:
            raise self._timeout(deadline_s) from None

    async def _ask_confirmed(self) -> int | None:
        if self.status().role is not Role.LEADER:
            return await self._ask_courier(is_confirmed=True)
        try:
            resolved = await self._confirm(asyncio.get_running_loop().time() + READ_ANSWER_S)
        except (TimeoutError, Unavailable):
            return None
        return resolved.index if resolved.error is None else None

    async def _ask_leader(self) -> int | None:
        status = self.status()
        if status.role is Role.LEADER:
            return status.applied_index
        return await self._ask_courier(is_confirmed=False)

    async def _ask_courier(self, *, is_confirmed: bool) -> int | None:
        answer = await self._courier.ask_index(is_confirmed=is_confirmed, timeout_s=READ_ANSWER_S)
        return answer.index if answer is not None and answer.error is None else None

    def _confirm(self, until: float) -> "asyncio.Future[Resolved]":
        return self._post(ReadIndex(next(self._tokens)), until)

    async def _wait_applied(self, index: int, until: float) -> None:
        if self.status().applied_index < index:
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._deadlines.add(future, until)
            self._answer_when_applied(index, future)
            await future

    def _answer_when_applied(self, index: int, future: "asyncio.Future[int]") -> None:
        if self._stopped is not None:
            future.set_exception(self._stopped)
            return
        self._applied.add(index, future)
        # In this order: the thread looks at what is wanted after it has applied.
        self._driver.wanted_index = self._applied.lowest
        self._applied.release(self.status().applied_index)

    # -- waiting --

    async def _pause(self, failures: int, until: float = float("inf")) -> None:
        """Before the next try: until leadership or links change, or a little longer each time."""
        pause_s = min(_RETRY_FIRST_S * 2.0 ** min(failures, 10), _RETRY_LAST_S)
        await self._wait_for_change(min(pause_s, max(until - asyncio.get_running_loop().time(), 0.0)))

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
        old, self._told = self._told, output.status
        waiting = self._waiting
        for resolved in output.resolved:
            waiter = waiting.pop(resolved.token, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(resolved)
        self._applied.release(output.status.applied_index)
        self._driver.wanted_index = self._applied.lowest
        self._courier.turn_to(output.status.leader)
        if output.events:
            tell(self._event_watchers, output.events)
        if is_other(old, output.status):
            if self._changed is not None and not self._changed.done():
                self._changed.set_result(None)
            tell(self._status_watchers, output.status)

    def _on_failure(self, error: Exception, is_final: bool) -> None:
        if is_final:
            self._fail_all(
                Unavailable("replica_stopped", f"this node's replica has stopped: {error}; ask another node")
            )
        if self._report_failure is not None:
            self._report_failure(error, is_final)

    def _fail_all(self, error: Unavailable) -> None:
        self._stopped = error
        self._deadlines.close()
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(error)
        self._barriers.fail(error)
        self._catching_up.fail(error)
        self._applied.fail(error)
        self._courier.turn_to(None)
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)


def _outcome(resolved: Resolved) -> Outcome:
    return Outcome(resolved.index, resolved.answer, resolved.error)


def _stopping() -> Unavailable:
    return Unavailable("stopped", "this node is stopping; ask another node")
