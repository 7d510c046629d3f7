"""The work of one Leaf on its way down: pushed in order, in batches, one message at a time. What is not taken in time
is not lost: it is leased, and sent again by whoever the Leaf hangs on next."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

import structlog

from node.executor.work import AttemptKey, BranchInput, Work
from node.uplinks import messages
from node.uplinks.limits import (
    PUSH_S,
    WORK_BYTES_PER_MESSAGE_MAX,
    WORKS_PER_MESSAGE_MAX,
    WORKS_WAITING_MAX,
)
from node.uplinks.messages import Assigned
from storage.ids import SessionId

log = structlog.get_logger()


class Line:
    """What `node.work.Assignments` takes for the executor of a Leaf. `run` ends when the Leaf takes no more."""

    def __init__(
        self,
        request: Callable[[str, bytes, float], Awaitable[bytes]],
        notify: Callable[[str, bytes], object],
    ) -> None:
        self._request = request
        self._notify = notify
        self._waiting: deque[Work] = deque()
        self._woken = asyncio.Event()

    def submit(self, work: Work) -> None:
        if len(self._waiting) >= WORKS_WAITING_MAX:
            log.warning("assignment_shed", session=work.session_id, branch=work.branch_index)
            return
        self._waiting.append(work)
        self._woken.set()

    def cancel(self, session_id: SessionId, branch_index: int, attempt: int) -> None:
        """Not yet sent: never. Sent: the Leaf is told, and if that is lost its outcome is refused."""
        key = AttemptKey(session_id, branch_index, attempt)
        waiting = [work for work in self._waiting if work.key != key]
        if len(waiting) == len(self._waiting):
            self._notify(messages.STOP, messages.encode([key]))
        self._waiting = deque(waiting)

    async def run(self) -> None:
        """Raises MeshError when the Leaf does not take its work."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                for batch in self._batches():
                    await self._request(messages.WORK, messages.encode(batch), PUSH_S)

    def _batches(self) -> Iterator[list[Assigned]]:
        """What is not sent yet stays in the row until its batch is made, so it can still be cancelled."""
        batch: list[Assigned] = []
        size = 0
        while self._waiting:
            work = self._waiting[0]
            for part in _parts(work):
                part_size = len(messages.encode(part))
                if batch and (size + part_size > WORK_BYTES_PER_MESSAGE_MAX or len(batch) >= WORKS_PER_MESSAGE_MAX):
                    yield batch
                    batch, size = [], 0
                    if not self._waiting or self._waiting[0] is not work:
                        break  # cancelled meanwhile
                batch.append(part)
                size += part_size
            else:
                self._waiting.popleft()
        if batch:
            yield batch


def _parts(work: Work) -> Iterator[Assigned]:
    """A consolidation's inputs come before it, in parts that fit a message."""
    if not work.inputs:
        yield Assigned(work=work)
        return
    bare = work.with_inputs([])
    part: list[BranchInput] = []
    size = 0
    for item in work.inputs:
        item_size = len(messages.encode(item))
        if part and size + item_size > WORK_BYTES_PER_MESSAGE_MAX:
            yield Assigned(work=bare, inputs=part, is_last=False)
            part, size = [], 0
        part.append(item)
        size += item_size
    yield Assigned(work=bare, inputs=part)
