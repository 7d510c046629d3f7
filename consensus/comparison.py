"""Compares this replica's tables with those of its peers, by digests taken at the same index. Pure."""

from collections.abc import Collection

from consensus.limits import CHECKPOINT_PERIOD_S, CHECKPOINTS_MAX
from consensus.messages import Checkpoint
from storage.ids import NodeId


class Comparison:
    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}
        self._reported: dict[NodeId, Checkpoint] = {}
        self._disagreeing: set[NodeId] = set()
        self._told_at = float("-inf")
        self.latest: tuple[int, bytes] | None = None
        """Index and digest recorded last."""

    def record(self, index: int, digest: bytes, now: float) -> bool:
        """Of this replica, right after it applied `index`. Whether it is time to tell the peers."""
        self.latest = (index, digest)
        self._digests[index] = digest
        if len(self._digests) > CHECKPOINTS_MAX:
            del self._digests[next(iter(self._digests))]
        if now - self._told_at < CHECKPOINT_PERIOD_S:
            return False
        self._told_at = now
        return True

    def report(self, peer: NodeId, checkpoint: Checkpoint) -> None:
        self._reported[peer] = checkpoint

    def count_against(self, applied_index: int, voters: Collection[NodeId]) -> int:
        """Voters whose tables were others when last compared."""
        for peer, report in list(self._reported.items()):
            mine = self._digests.get(report.index)
            if mine is None:
                if report.index <= applied_index:
                    del self._reported[peer]
                continue
            del self._reported[peer]
            if mine == report.digest:
                self._disagreeing.discard(peer)
            else:
                self._disagreeing.add(peer)
        return len(self._disagreeing.intersection(voters))
