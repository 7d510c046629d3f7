"""Asks the leader for changes of voters and learners, from any node, until they are made or refused.

A newcomer knows no leader: it asks whom it is linked to, and that node asks the leader. What is asked for is
idempotent, so asking again after a lost answer is safe.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from consensus.courier import PeerTransport
from consensus.engine import Role
from consensus.errors import ProposalFailed, ProposalTimeout
from consensus.group import Group
from consensus.membership import Change, Plan, Refusal, plan, quorum_of
from storage.ids import NodeId

CHANGE = "change"
"""The method under which `PeerTransport.request` reaches a peer's `Changes.on_request`."""

CHANGES_MAX = 4
"""In one request; a replacement is two."""

_REQUEST_BYTES_MAX = 4096
_DEADLINE_S_MAX = 60.0
_RETRY_S = 0.2
_PASSING = ("change_pending", "leader_is_new")
"""Refusals that pass by themselves."""

_AGAIN = (*_PASSING, "not_leader", "discarded", "timeout")
"""What is asked again; but for refusals, it may have been done."""


class ChangeRefused(ProposalFailed):
    """Nothing was done, or not all. `code` is that of a `membership.Refusal`, `only_replicas` or `only_core`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Request(msgspec.Struct, frozen=True, array_like=True):
    changes: Annotated[list[Change], msgspec.Meta(min_length=1, max_length=CHANGES_MAX)]
    is_dry_run: bool
    deadline_s: float
    is_forwarded: bool = False


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    """`plan`: what was done, or would be."""

    plan: Plan | None
    error: str | None = None
    message: str = ""


class Changes:
    """`may_join(node_id)`: whether this node takes that peer for one that may learn: its tier holds a replica.
    `may_vote(node_id)`: whether its tier votes, as far as is known here."""

    def __init__(
        self,
        group: Group,
        transport: PeerTransport,
        may_join: Callable[[NodeId], bool],
        may_vote: Callable[[NodeId], bool] = lambda node_id: True,
    ) -> None:
        self._group = group
        self._transport = transport
        self._may_join = may_join
        self._may_vote = may_vote

    async def ask(
        self,
        changes: Sequence[Change],
        *,
        is_dry_run: bool = False,
        via: Sequence[NodeId] = (),
        deadline_s: float = 10.0,
    ) -> Plan:
        """What was done; with `is_dry_run` what would be, its refusal in it. In order, each committed before the next.
        `via`: whom to ask while no leader is known. Raises ChangeRefused, ProposalTimeout, Unavailable."""
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline_s
        answer = _Answer(None, "timeout")
        while (left_s := until - loop.time()) > 0:
            answer = await self._ask_once(_Request(list(changes), is_dry_run, left_s), via)
            if answer.plan is not None and answer.error is None:
                return answer.plan
            if answer.error not in _AGAIN:
                raise ChangeRefused(answer.error or "refused", answer.message)
            await asyncio.sleep(_RETRY_S)
        if answer.error in _PASSING:
            raise ChangeRefused(answer.error, answer.message)
        raise ProposalTimeout("timeout" if self._group.status().leader else "no_leader", deadline_s)

    async def on_request(self, peer: NodeId, payload: bytes) -> bytes:
        return _encode(await self._answer(peer, payload))

    async def _answer(self, peer: NodeId, payload: bytes) -> _Answer:
        try:
            if len(payload) > _REQUEST_BYTES_MAX:
                raise msgspec.DecodeError
            request = _decode_request(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _Answer(None, "malformed", "the request cannot be read: update the older node")
        if not request.is_forwarded:
            for change in request.changes:
                if change.kind == "add" and not self._may_join(change.node_id):
                    return _Answer(None, "only_replicas", f"{change.node_id} is not linked here as a Core or Edge node")
        if request.is_forwarded and self._group.status().role is not Role.LEADER:
            return _Answer(None, "not_leader")
        return await self._ask_once(request, ())

    async def _ask_once(self, request: _Request, via: Sequence[NodeId]) -> _Answer:
        status = self._group.status()
        deadline_s = min(max(request.deadline_s, 0.0), _DEADLINE_S_MAX)
        if status.role is Role.LEADER:
            return await self._lead(request, asyncio.get_running_loop().time() + deadline_s)
        is_known = status.leader is not None
        payload = _encode(msgspec.structs.replace(request, is_forwarded=is_known))
        answer = _Answer(None, "not_leader")
        for target in [status.leader] if status.leader is not None else via:
            try:
                answer = _decode_answer(await self._transport.request(target, CHANGE, payload, min(deadline_s, 5.0)))
            except Exception as error:  # whatever a transport raises or a peer answers: it is safe to ask again
                answer = _Answer(None, "not_leader", str(error))
            if answer.error is None:
                break
        return answer

    async def _lead(self, request: _Request, until: float) -> _Answer:
        status = self._group.status()
        promoted = [change.node_id for change in request.changes if change.kind == "promote"]
        for node_id in promoted:
            if not self._may_vote(node_id):
                return _only_core(node_id)
        if request.is_dry_run:
            return _Answer(plan(status.configuration, request.changes, status.standing))
        configuration, made = status.configuration, []
        try:
            for change in request.changes:
                resolved = await self._group.change(change, until)
                if isinstance(resolved.answer, Refusal):
                    return _Answer(None, resolved.answer.code, resolved.answer.message)
                if resolved.error is not None:
                    return _Answer(None, resolved.error)
                if resolved.answer != configuration:
                    made.append(change)
                    configuration = resolved.answer
        except TimeoutError:
            return _Answer(None, "timeout")
        except ProposalFailed as error:
            return _Answer(None, getattr(error, "code", "unavailable"), str(error))
        # Told by what was done: what the leader knew when it was asked may have been older than what it judged by.
        before = quorum_of(status.configuration, status.standing)
        after = quorum_of(configuration, self._group.status().standing)
        return _Answer(Plan(tuple(made), before, after, configuration, None))


def _only_core(node_id: NodeId) -> _Answer:
    return _Answer(None, "only_core", f"{node_id} is an Edge: restart it with tier = core, then promote it")


_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(_Request).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode
