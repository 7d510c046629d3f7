"""What attempts have come to, until the mesh has answered: in memory while it is delivered, on the disk while it cannot
be. Every report is signed by this node, so whoever passes it on cannot change it.

Rules:
- an outcome leaves the outbox when it is answered, recorded or not; nothing else takes it out but a full disk.
- what is on the disk goes first and in order; a file may be delivered twice (a crash before it is deleted), which
  changes nothing: attempts have numbers.
- a file is written whole (temporary, fsync, rename, fsync of the folder) and proves itself by its digest.
- a disk that takes nothing, not even a deletion, keeps nobody from delivering.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from consensus.state.commands import Outcome
from mesh.identity import write_private
from node.executor.work import AttemptKey
from node.leaf import limits
from node.uplinks import messages
from node.uplinks.limits import OUTCOME_BYTES_PER_MESSAGE_MAX, OUTCOMES_PER_MESSAGE_MAX
from node.uplinks.messages import SignedOutcomes, Verdict
from storage import codec
from storage.errors import CodecError

Report = Callable[[SignedOutcomes], Awaitable[list[Verdict]]]

SUFFIX = ".results"
LOOK_S = 0.25

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Kept:
    path: Path
    size_bytes: int


@dataclass(slots=True)
class _Waiting:
    content: bytes
    since: float


class Outbox:
    """`sign` proves a content. Whoever owns the uplink sets `is_cut_off` while nobody is there to take anything."""

    def __init__(self, directory: Path, sign: Callable[[bytes], bytes], mesh_name: str) -> None:
        self._directory = directory
        self._sign = sign
        self._mesh_name = mesh_name
        self._waiting: OrderedDict[AttemptKey, _Waiting] = OrderedDict()
        self._kept: deque[_Kept] = deque()
        self._number = 0
        self._woken = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_warned = False
        self.is_cut_off = True
        self.dropped = 0
        self.superseded = 0

    def open(self) -> None:
        """What a former start has left. Blocking."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._directory.glob(f".*{SUFFIX}.*"):  # of a process that was killed while it wrote
            _delete(path)
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            self._kept.append(_Kept(path, path.stat().st_size))
            with contextlib.suppress(ValueError):
                self._number = max(self._number, int(path.name.removesuffix(SUFFIX)))

    # --- in ---

    def add(self, outcome: Outcome) -> None:
        self._waiting[messages.key_of(outcome)] = _Waiting(codec.encode(outcome), time.monotonic())
        while len(self._waiting) > limits.OUTCOMES_WAITING_MAX:
            self._waiting.popitem(last=False)
            self._note_dropped(1, "memory")
        self._idle.clear()
        self._woken.set()

    def keys(self) -> list[AttemptKey]:
        """Of what waits in memory; what is on the disk may have been left by a former start."""
        return list(self._waiting)

    @property
    def counts(self) -> dict[str, int]:
        return {
            "waiting": len(self._waiting),
            "kept_files": len(self._kept),
            "kept_bytes": sum(kept.size_bytes for kept in self._kept),
            "dropped": self.dropped,
            "superseded": self.superseded,
        }

    async def wait_idle(self) -> None:
        """Until everything is answered."""
        await self._idle.wait()

    # --- to the disk ---

    async def run(self) -> None:
        """Writes down what cannot be delivered, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.keep(only_overdue=True)

    async def keep(self, *, only_overdue: bool = False) -> None:
        """Everything that waits goes to the disk: all at once, with one fsync."""
        if not self._waiting:
            return
        oldest = next(iter(self._waiting.values())).since
        if only_overdue and not self.is_cut_off and time.monotonic() - oldest < limits.KEEP_AFTER_S:
            return
        taken = dict(self._waiting)
        content = codec.encode([self._signed(batch) for batch in _batches(taken.values())])
        self._number += 1
        path = self._directory / f"{self._number:012d}{SUFFIX}"
        data = codec.digest(content) + content
        await self._make_room(len(data))
        try:
            await asyncio.to_thread(write_private, path, data)
        except OSError as error:
            if not self._is_warned:
                self._is_warned = True
                log.warning("results_not_kept", reason=str(error), waiting=len(taken), folder=str(self._directory))
            return
        self._is_warned = False
        self._kept.append(_Kept(path, len(data)))
        for key, waiting in taken.items():
            if self._waiting.get(key) is waiting:
                del self._waiting[key]
        log.info("results_kept", results=len(taken), files=len(self._kept))
        self._woken.set()

    async def _make_room(self, size_bytes: int) -> None:
        total = sum(kept.size_bytes for kept in self._kept) + size_bytes
        while self._kept and (total > limits.KEPT_BYTES_MAX or len(self._kept) >= limits.KEPT_FILES_MAX):
            oldest = self._kept.popleft()
            total -= oldest.size_bytes
            dropped = await asyncio.to_thread(_read, oldest.path)
            self._note_dropped(sum(len(signed.contents) for signed in dropped or ()), "disk")
            await asyncio.to_thread(_delete, oldest.path)

    def _note_dropped(self, count: int, where: str) -> None:
        if self.dropped == 0 and count:
            log.warning("results_dropped", where=where, reason="the oldest go; their branches are executed again")
        self.dropped += count

    # --- out ---

    async def deliver_kept(self, report: Report) -> None:
        """What is on the disk. Raises what `report` raises; what was not answered stays."""
        while self._kept:
            kept = self._kept[0]
            found = await asyncio.to_thread(_read, kept.path)
            for signed in found or ():
                self._settle(signed.contents, await report(signed))
            if found is not None:
                await asyncio.to_thread(_delete, kept.path)
            if self._kept and self._kept[0] is kept:
                self._kept.popleft()

    async def deliver(self, report: Report) -> None:
        """Until cancelled, or `report` raises."""
        while True:
            await self.deliver_kept(report)
            batch = next(_batches(self._waiting.values()), None)
            if batch is None:
                self._idle.set()
                self._woken.clear()
                await self._woken.wait()
                continue
            self._settle(batch, await report(self._signed(batch)))

    def _signed(self, contents: list[bytes]) -> SignedOutcomes:
        return SignedOutcomes(contents=contents, proof=self._sign(messages.signable(self._mesh_name, contents)))

    def _settle(self, contents: list[bytes], verdicts: list[Verdict]) -> None:
        """What the mesh says nothing of it could not read."""
        results = {AttemptKey(*verdict.key): verdict.result for verdict in verdicts}
        for content in contents:
            outcome = messages.outcome_of(content)
            key = None if outcome is None else messages.key_of(outcome)
            result = "unreadable" if key is None else results.get(key, "unreadable")
            if key is not None:
                self._waiting.pop(key, None)
            if result != "recorded":
                self.superseded += 1
                session, branch, attempt = key or (None, None, None)
                log.info("result_not_recorded", session=session, branch=branch, attempt=attempt, reason=result)


def _batches(waiting: Iterable[_Waiting]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size_bytes = 0
    for one in waiting:
        if batch and (
            len(batch) >= OUTCOMES_PER_MESSAGE_MAX or size_bytes + len(one.content) > OUTCOME_BYTES_PER_MESSAGE_MAX
        ):
            yield batch
            batch, size_bytes = [], 0
        batch.append(one.content)
        size_bytes += len(one.content)
    if batch:
        yield batch


def _delete(path: Path) -> None:
    """What stays is delivered again at the next start, which changes nothing."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("kept_results_not_deleted", file=str(path), reason=str(error))


def _read(path: Path) -> list[SignedOutcomes] | None:
    """What is in a file; nothing if it is damaged. None: it could not be read now, and waits for the next start."""
    try:
        data = path.read_bytes()
    except OSError as error:
        log.warning("kept_results_not_read", file=str(path), reason=str(error))
        return None
    try:
        content = data[codec.DIGEST_BYTES :]
        if codec.digest(content) != data[: codec.DIGEST_BYTES]:
            raise CodecError("malformed", "the digest does not match")
        return codec.decode(content, list[SignedOutcomes])
    except CodecError as error:
        log.warning("kept_results_damaged", file=str(path), reason=str(error))
        return []
