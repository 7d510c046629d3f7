"""Which frame goes next, and what happens when too many wait. Pure.

Strict priority: control (heartbeats, founding), Raft, requests and responses, notices. A lower class moves only when
the higher ones are empty, and starves under load: that is what it is for. Within a class order is kept.
"""

from collections import deque
from enum import IntEnum

from mesh import limits


class Priority(IntEnum):
    CONTROL = 0
    RAFT = 1
    REQUEST = 2
    NOTICE = 3


_FRAMES_MAX = (limits.CONTROL_FRAMES_MAX, limits.RAFT_FRAMES_MAX, limits.REQUEST_FRAMES_MAX, limits.NOTICE_FRAMES_MAX)
_BYTES_MAX = (
    limits.CONTROL_FRAMES_MAX * 1024,
    limits.RAFT_BYTES_MAX,
    limits.REQUEST_BYTES_MAX,
    limits.NOTICE_BYTES_QUEUED_MAX,
)


class Outbox:
    """Frames waiting for one link."""

    __slots__ = ("_bytes", "_queues", "shed")

    def __init__(self) -> None:
        self._queues: tuple[deque[bytes], ...] = tuple(deque() for _ in Priority)
        self._bytes = [0, 0, 0, 0]
        self.shed = [0, 0, 0, 0]
        """Frames not accepted, by priority."""

    def put(self, priority: Priority, frame: bytes) -> bool:
        """Queue a frame; False (counted) when its class is full. An empty class takes any one frame."""
        queue = self._queues[priority]
        if queue and (len(queue) >= _FRAMES_MAX[priority] or self._bytes[priority] + len(frame) > _BYTES_MAX[priority]):
            self.shed[priority] += 1
            return False
        queue.append(frame)
        self._bytes[priority] += len(frame)
        return True

    def take(self, bytes_max: int) -> list[bytes]:
        """The next frames, most urgent first, up to about `bytes_max` bytes but at least one. Empty if none wait."""
        taken: list[bytes] = []
        size = 0
        for priority, queue in enumerate(self._queues):
            while queue:
                if taken and size + len(queue[0]) > bytes_max:
                    return taken
                frame = queue.popleft()
                self._bytes[priority] -= len(frame)
                size += len(frame)
                taken.append(frame)
        return taken

    def __bool__(self) -> bool:
        return any(self._queues)

    def waiting(self) -> tuple[int, int]:
        """Frames and bytes waiting."""
        return sum(map(len, self._queues)), sum(self._bytes)
