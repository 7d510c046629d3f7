"""How much a leader has on its way to one peer, and when a learner is told more. Pure: time is an argument.

Nobody waits for a learner, but each message costs it a write of its own and the leader an answer to read; with a dozen
learners and hundreds of commitments a second that is more than everything else. So what is committed gathers for them,
once a burst is used up (the leaky bucket of the generic cell rate algorithm, ITU-T I.371): a
quiet mesh is told at once.
"""

from collections import deque

from consensus.limits import RaftSettings


class Flow:
    """Bytes are those of entries; times those of the step, in seconds."""

    def __init__(self, settings: RaftSettings) -> None:
        self._settings = settings
        self._on_way: deque[tuple[int, int]] = deque()
        self._bytes_on_way = 0
        self.reset()

    def reset(self) -> None:
        """What was on its way may be lost."""
        self._on_way.clear()
        self._bytes_on_way = 0
        self._is_probing = True
        self.commit_told = 0
        self.due_at = 0.0
        """Before that a learner is told nothing new."""

    @property
    def has_room(self) -> bool:
        """One batch until the peer has answered: until then what it lacks is a guess."""
        return self._bytes_on_way < (1 if self._is_probing else self._settings.window_bytes)

    def note_sent(self, last_index: int, size_bytes: int) -> None:
        self._on_way.append((last_index, size_bytes))
        self._bytes_on_way += size_bytes

    def note_answer(self, next_index: int) -> None:
        """It holds everything before `next_index`."""
        while self._on_way and self._on_way[0][0] < next_index:
            self._bytes_on_way -= self._on_way.popleft()[1]
        self._is_probing = False

    def take_turn(self, now: float) -> None:
        """Of a learner that is told something at this time."""
        gather_s = self._settings.learner_gather_s
        self.due_at = max(self.due_at, now - self._settings.learner_burst * gather_s) + gather_s
