"""What running branches say of themselves, on every node: progress, a message, the last log lines.

Told from node to node over links, never through the log: it may be lost, and is gone when all nodes restart. So it
costs the mesh no disk, and a ritual may report as often as it likes (the worker already limits the rate).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import msgspec

from consensus.state.events import (
    AttemptEnded,
    BranchAssigned,
    BranchCancelled,
    BranchCompleted,
    BranchFailed,
    BranchRequeued,
    Numbered,
)
from node.executor.work import AttemptKey, LiveUpdate
from storage import codec
from storage.errors import CodecError
from storage.ids import NodeId, SessionId

TOPIC = "live"

STATES_MAX = 4_096
"""Attempts remembered, the longest silent forgotten first: at 40 lines of 500 bytes at most 80 MiB, usually 1 MiB."""

LINES_MAX = 40
"""Log lines kept of a branch."""

LINE_CHARS_MAX = 500
"""Checked again on arrival: a peer may run another version."""

ASSIGNED_MAX = 4 * STATES_MAX
"""Assignments remembered, to believe only those about whom something is told that they may know: 4 MiB."""

NOTICE_BYTES_MAX = 256 * 1024
"""Of one notice, cut into more if need be; a link takes four times as much."""

SHARE_PERIOD_S = 0.5
"""News gather for so long before they are told: of what lasts shorter there is nothing to tell but lines."""

UPDATE_S = 0.01
"""And for so long for each that was told the last time: every node hears of them, so where hundreds of branches execute
at once each is heard of less often."""

UPDATES_PER_NOTICE_MAX = 200


class LiveState(msgspec.Struct, array_like=True):
    """The latest of one attempt. `progress` is 0 to 1, or None if the ritual does not say."""

    node_id: NodeId
    attempt: int
    progress: float | None = None
    message: str = ""
    lines: list[str] = []


class LiveBoard:
    """`publish` what happens here, `receive` what other nodes tell; `get` answers for any branch of the mesh. Only the
    node that the replicated state names as executing an attempt is believed about it."""

    def __init__(self, node_id: NodeId, broadcast: Callable[[str, bytes], None]) -> None:
        self.parent_of: Callable[[NodeId], NodeId | None] = lambda node_id: None
        """Of a Leaf: who passes its news on."""
        self._node_id = node_id
        self._sharing = Sharing(broadcast)
        self._states: OrderedDict[AttemptKey, LiveState] = OrderedDict()
        self._assigned: OrderedDict[AttemptKey, NodeId] = OrderedDict()
        self.refused = 0

    def get(self, session_id: SessionId, branch_index: int, attempt: int) -> LiveState | None:
        return self._states.get(AttemptKey(session_id, branch_index, attempt))

    def publish(self, update: LiveUpdate) -> None:
        """A branch that executes here has said something."""
        if self._merge(self._node_id, update):
            self._sharing.add(update)

    def receive(self, peer: NodeId, payload: bytes) -> None:
        """A notice of another node. What cannot be read or is not its to tell is counted in `refused`. That of a Leaf
        is passed on by its parent."""
        try:
            updates = codec.decode(payload, list[LiveUpdate], NOTICE_BYTES_MAX * 4)[:UPDATES_PER_NOTICE_MAX]
        except CodecError:
            self.refused += 1
            return
        is_of_own_leaf = self.parent_of(peer) == self._node_id
        others = {update.node_id for update in updates} - {peer}
        leaves = {node_id for node_id in others if self.parent_of(node_id) == peer}
        for update in updates:
            is_believed = self._merge(update.node_id if update.node_id in leaves else peer, update)
            if is_believed and is_of_own_leaf:
                self._sharing.add(update)

    def on_events(self, events: Iterable[Numbered]) -> None:
        """What has ended without a line in its log leaves nothing to show."""
        for numbered in events:
            match numbered.event:
                case BranchAssigned() as event:
                    self.note_assigned(event.session_id, event.branch_index, event.attempt, event.node_id)
                case BranchRequeued() | AttemptEnded() as event:
                    key = AttemptKey(event.session_id, event.branch_index, event.attempt)
                    self._assigned.pop(key, None)
                    self._sharing.ended(key)
                case BranchCompleted() | BranchFailed() | BranchCancelled() as event:
                    key = AttemptKey(event.session_id, event.branch_index, event.attempt)
                    if key in self._assigned:  # its last words may come yet; but what runs is remembered rather
                        self._assigned.move_to_end(key, last=False)
                    state = self._states.get(key)
                    if state is not None and not state.lines:
                        del self._states[key]
                    self._sharing.ended(key)
                case _:
                    pass

    def note_assigned(self, session_id: SessionId, branch_index: int, attempt: int, node_id: NodeId) -> None:
        """Also for what was assigned before this daemon started."""
        self._assigned[AttemptKey(session_id, branch_index, attempt)] = node_id
        while len(self._assigned) > ASSIGNED_MAX:
            self._assigned.popitem(last=False)

    async def run(self) -> None:
        """Shares what happened here with the other nodes, until cancelled."""
        await self._sharing.run()

    def _merge(self, node_id: NodeId, update: LiveUpdate) -> bool:
        """Whether it is believed."""
        key = AttemptKey(update.session_id, update.branch_index, update.attempt)
        if self._assigned.get(key) != node_id:
            self.refused += 1
            return False
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = LiveState(node_id=node_id, attempt=update.attempt, lines=[])
        if update.progress is not None:
            state.progress = min(1.0, max(0.0, update.progress))
        if update.message:
            state.message = update.message[:LINE_CHARS_MAX]
        state.lines = _tail(state.lines, update.lines)
        self._states.move_to_end(key)
        while len(self._states) > STATES_MAX:
            self._states.popitem(last=False)
        return True


class Sharing:
    """Gathers updates and sends them a few times a second, in notices of bounded size."""

    def __init__(self, send: Callable[[str, bytes], None]) -> None:
        self._send = send
        self._unshared: dict[AttemptKey, LiveUpdate] = {}
        self._woken = asyncio.Event()

    def add(self, update: LiveUpdate) -> None:
        """Of an attempt the latest counts, and all its lines."""
        key = AttemptKey(update.session_id, update.branch_index, update.attempt)
        earlier = self._unshared.get(key)
        if earlier is not None:
            update = msgspec.structs.replace(
                update,
                progress=earlier.progress if update.progress is None else update.progress,
                message=update.message or earlier.message,
                lines=_tail(earlier.lines, update.lines),
            )
        if earlier is not None or len(self._unshared) < 10 * UPDATES_PER_NOTICE_MAX:  # beyond: shed, it is only news
            self._unshared[key] = update
            self._woken.set()

    def ended(self, key: AttemptKey) -> None:
        """How far it had come is no news any more; its last lines are."""
        update = self._unshared.get(key)
        if update is not None and not update.lines:
            del self._unshared[key]

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = SHARE_PERIOD_S
        while True:
            await self._woken.wait()
            await asyncio.sleep(pause_s)
            self._woken.clear()
            unshared, self._unshared = list(self._unshared.values()), {}
            for start in range(0, len(unshared), UPDATES_PER_NOTICE_MAX):
                self._share(unshared[start : start + UPDATES_PER_NOTICE_MAX])
            pause_s = max(SHARE_PERIOD_S, len(unshared) * UPDATE_S)

    def _share(self, updates: list[LiveUpdate]) -> None:
        payload = codec.encode(updates)
        if len(payload) <= NOTICE_BYTES_MAX or len(updates) == 1:
            self._send(TOPIC, payload)
        else:
            middle = len(updates) // 2
            self._share(updates[:middle])
            self._share(updates[middle:])


def _tail(lines: list[str], more: Sequence[str]) -> list[str]:
    return [*lines, *(line[:LINE_CHARS_MAX] for line in more)][-LINES_MAX:]
