"""Carries what is asked on this node to the leader, and what the leader says back.

Proposals made in one turn of the loop travel together, and while a few such requests are on their way the next ones
gather: a request each would cost more than what it carries. Whoever was asked and leads no more is not waited for.

The words are MessagePack arrays; a field may only be appended, with a default.
"""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Annotated, Any, Protocol

import msgspec

from consensus.limits import FORWARDED_BYTES_MAX, FORWARDED_COMMANDS_MAX, FORWARDS_IN_FLIGHT_MAX
from consensus.state.commands import Answer
from storage.ids import NodeId

PROPOSE = "propose"
"""The method under which `PeerTransport.request` reaches a peer's `Group.on_request`."""

READ_INDEX = "read_index"
"""The same, for `Group.on_read_request`."""


class PeerTransport(Protocol):
    """How this node speaks to peers."""

    def send(self, peer: NodeId, payload: bytes) -> bool:
        """A frame, in order or not at all; False if it was dropped. Never blocks."""

    def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> Coroutine[Any, Any, bytes]:
        """The peer's answer. Raises any Exception if there is none."""


class Proposals(msgspec.Struct, frozen=True, array_like=True):
    commands: Annotated[list[bytes], msgspec.Meta(max_length=FORWARDED_COMMANDS_MAX)]
    deadline_s: float


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """Error: as in `Resolved`, or `overloaded`, `malformed`, `timeout`, `stopped`, `disk_low`."""

    index: int
    answer: Answer | None
    error: str | None


class Outcomes(msgspec.Struct, frozen=True, array_like=True):
    """One a proposal, in order; none, and the error of all, if none was proposed."""

    each: list[Outcome]
    error: str | None = None


class ReadQuestion(msgspec.Struct, frozen=True, array_like=True):
    is_confirmed: bool
    """Whether the leader must prove first that it leads."""
    deadline_s: float


class ReadAnswer(msgspec.Struct, frozen=True, array_like=True):
    index: int
    error: str | None


_Parcel = tuple[bytes, float, "asyncio.Future[Outcome | None]"]


class Courier:
    """`leader` is whom it asks."""

    def __init__(self, transport: PeerTransport) -> None:
        self._transport = transport
        self._leader: NodeId | None = None
        self._parcels: list[_Parcel] = []
        self._is_leaving = False
        self._carrying: set[asyncio.Task[Outcomes | None]] = set()
        self._asking: set[asyncio.Task[bytes | None]] = set()

    def turn_to(self, leader: NodeId | None) -> None:
        """Whoever waits for the former leader is told that nothing is known."""
        if leader == self._leader:
            return
        self._leader = leader
        for task in (*self._carrying, *self._asking):
            task.cancel()
        parcels, self._parcels = self._parcels, []
        for _, _, future in parcels:
            _settle(future, None)

    def forward(self, command: bytes, until: float) -> "asyncio.Future[Outcome | None]":
        """Of a proposal; None: no answer, so the outcome is unknown."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome | None] = loop.create_future()
        self._parcels.append((command, until, future))
        if not self._is_leaving:
            self._is_leaving = True
            loop.call_soon(self._leave)
        return future

    async def ask_index(self, *, is_confirmed: bool, timeout_s: float) -> ReadAnswer | None:
        """How far to read; None: no answer."""
        question = _encode(ReadQuestion(is_confirmed, timeout_s))
        task = asyncio.ensure_future(self._request(READ_INDEX, question, timeout_s))
        self._asking.add(task)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            self._asking.discard(task)
        answer = None if task.cancelled() else task.result()
        return None if answer is None else _decode_or_none(_decode_read_answer, answer)

    async def close(self) -> None:
        self.turn_to(None)
        await asyncio.gather(*self._carrying, *self._asking, return_exceptions=True)

    # -- inside --

    def _leave(self) -> None:
        self._is_leaving = False
        while self._parcels and len(self._carrying) < FORWARDS_IN_FLIGHT_MAX:
            count, size = 0, 0
            for command, _, _ in self._parcels[:FORWARDED_COMMANDS_MAX]:
                size += len(command) + 5  # its header in MessagePack
                if count and size > FORWARDED_BYTES_MAX - 32:
                    break
                count += 1
            parcels, self._parcels = self._parcels[:count], self._parcels[count:]
            task = asyncio.create_task(self._carry(parcels))
            self._carrying.add(task)
            task.add_done_callback(partial(self._came_back, parcels))

    def _came_back(self, parcels: list[_Parcel], task: "asyncio.Task[Outcomes | None]") -> None:
        """Not in the task itself: one that is cancelled before its first step would settle nothing."""
        self._carrying.discard(task)
        outcomes = None if task.cancelled() else task.result()
        for position, (_, _, future) in enumerate(parcels):
            if outcomes is None:
                outcome = None
            elif outcomes.error is not None:
                outcome = Outcome(0, None, outcomes.error)
            else:
                outcome = outcomes.each[position] if position < len(outcomes.each) else None
            _settle(future, outcome)
        if self._parcels and not self._is_leaving:
            self._leave()

    async def _carry(self, parcels: list[_Parcel]) -> Outcomes | None:
        timeout_s = max(max(until for _, until, _ in parcels) - asyncio.get_running_loop().time(), 0.001)
        request = _encode(Proposals([command for command, _, _ in parcels], timeout_s))
        answer = await self._request(PROPOSE, request, timeout_s)
        outcomes: Outcomes | None = None if answer is None else _decode_or_none(_decode_outcomes, answer)
        return outcomes

    async def _request(self, method: str, payload: bytes, timeout_s: float) -> bytes | None:
        if self._leader is None:
            return None
        try:
            return await self._transport.request(self._leader, method, payload, timeout_s)
        except Exception:
            # Whatever a transport raises: proposing and asking again is safe.
            return None


def _settle(future: "asyncio.Future[Outcome | None]", outcome: Outcome | None) -> None:
    if not future.done():
        future.set_result(outcome)


def _decode_or_none(decode: Any, answer: bytes) -> Any:
    """None: the peer says what makes no sense."""
    try:
        return decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


encode = _encode = msgspec.msgpack.Encoder().encode
decode_proposals = msgspec.msgpack.Decoder(Proposals).decode
decode_question = msgspec.msgpack.Decoder(ReadQuestion).decode
_decode_outcomes = msgspec.msgpack.Decoder(Outcomes).decode
_decode_read_answer = msgspec.msgpack.Decoder(ReadAnswer).decode
