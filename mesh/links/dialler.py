"""Keeps trying to reach every known peer and seed: one task a target, jittered back-off, refusals once a minute.

A peer that never answered, and that nobody but strangers on the LAN spoke of, is forgotten when it is not heard again.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mesh.limits import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    BACKOFF_REFUSED_S,
    DIAL_DEFERENCE_S,
    HEARD_LASTS_S,
    PEERS_KNOWN_MAX,
)
from mesh.links.book import AddressBook
from mesh.supervise import Logger, Supervisor
from storage.ids import NodeId


@dataclass(frozen=True, slots=True)
class Dialled:
    """What came of one dial."""

    node_id: NodeId | None
    """Who answered, if TLS got that far."""
    is_linked: bool
    """A link to `node_id` exists now (this one or another)."""
    refusal: str | None
    """The refusal code, when somebody said no."""
    error: str = ""


@dataclass(slots=True)
class Target:
    """Somebody to reach: a peer by id, or a seed by address until it is known who lives there."""

    node_id: NodeId | None
    seed: str
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    reconsider: asyncio.Event = field(default_factory=asyncio.Event)
    """Ends the long wait after a refusal, which hints of strangers must not."""
    last_error: str = ""
    hinted_at: float = 0.0
    """Loop time."""
    task: asyncio.Task[None] | None = None


class Dialler:
    """See the module. `dial(address)` makes one attempt and never raises except for cancellation."""

    def __init__(
        self,
        own: NodeId,
        book: AddressBook,
        dial: Callable[[str], Awaitable[Dialled]],
        is_linked: Callable[[NodeId], bool],
        rng: random.Random,
        log: Logger,
    ) -> None:
        self._own = own
        self._book = book
        self._dial = dial
        self._is_linked = is_linked
        self._rng = rng
        self._tasks = Supervisor(log)
        self._peers: dict[NodeId, Target] = {}
        self._seeds: dict[str, Target] = {}

    def add_seed(self, address: str) -> None:
        """Try `host:port` for as long as the mesh runs; names are resolved anew at each dial."""
        if address not in self._seeds and len(self._seeds) < PEERS_KNOWN_MAX:
            target = self._seeds[address] = Target(None, address)
            self._tasks.spawn(self._run(target), f"mesh dial seed {address}")

    def hint(self, node_id: NodeId, *, is_new: bool) -> None:
        """The book has addresses for `node_id`. `is_new` ends its back-off: there is a new reason to hope."""
        if node_id == self._own:
            return
        target = self._peers.get(node_id)
        if target is None:
            target = self._peers[node_id] = Target(node_id, "")
            target.task = self._tasks.spawn(self._run(target), f"mesh dial {node_id}")
        elif is_new:
            target.wake.set()
        target.hinted_at = asyncio.get_running_loop().time()

    def end(self, node_id: NodeId) -> None:
        """The book has forgotten `node_id`."""
        target = self._peers.pop(node_id, None)
        if target is not None and target.task is not None:
            target.task.cancel()

    def unlinked(self, node_id: NodeId) -> None:
        """The link to `node_id` is gone: dial again at once."""
        for target in (*self._peers.values(), *self._seeds.values()):
            if target.node_id == node_id:
                target.wake.set()

    def retry_refused(self) -> None:
        """What made others refuse us, or us refuse them, may have changed: do not wait for the next try."""
        for target in (*self._peers.values(), *self._seeds.values()):
            target.reconsider.set()

    def last_error(self, node_id: NodeId) -> str:
        target = self._peers.get(node_id)
        return "" if target is None else target.last_error

    def seed_errors(self) -> dict[str, str]:
        """Seeds that do not answer, with the reason."""
        return {address: target.last_error for address, target in self._seeds.items() if target.last_error}

    def seeds_untried(self) -> int:
        """Seeds whose first dial has neither linked nor failed yet."""
        return sum(target.node_id is None and not target.last_error for target in self._seeds.values())

    async def stop(self) -> None:
        """Dial nobody any more."""
        await self._tasks.close()

    async def _run(self, target: Target) -> None:
        failures = 0
        if target.node_id is not None and target.node_id < self._own:
            await asyncio.sleep(DIAL_DEFERENCE_S * (1 + self._rng.random()))
        while True:
            target.wake.clear()
            target.reconsider.clear()
            if target.node_id is not None and self._is_linked(target.node_id):
                failures = 0
                target.last_error = ""
                await target.wake.wait()
                if target.seed and target.node_id in self._peers:
                    # The peer's own target goes first; the seed is for the day that its addresses are all stale.
                    await _wait(target.wake, BACKOFF_MAX_S)
                continue
            refusal = await self._try(target)
            if target.node_id is not None and self._is_linked(target.node_id):
                continue
            if not target.seed and target.node_id is not None and self._is_stale(target.node_id, target.hinted_at):
                self._book.forget(target.node_id)  # which ends this task
                return
            if refusal is not None:
                await _wait(target.reconsider, BACKOFF_REFUSED_S * (0.75 + 0.25 * self._rng.random()))
                continue
            delay_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures, 16))
            failures += 1
            if await _wait(target.wake, delay_s * (0.5 + 0.5 * self._rng.random())):
                failures = 0

    def _is_stale(self, node_id: NodeId, hinted_at: float) -> bool:
        heard_ago_s = asyncio.get_running_loop().time() - hinted_at
        return heard_ago_s > HEARD_LASTS_S and not self._book.is_lasting(node_id)

    async def _try(self, target: Target) -> str | None:
        """One round over the target's addresses; the refusal when every address that answered refused."""
        addresses = (target.seed,) if target.node_id is None or target.seed else self._book.addresses(target.node_id)
        refusal: str | None = None
        has_hope = False
        for address in addresses:
            outcome = await self._dial(address)
            target.last_error = outcome.error
            if target.seed and outcome.is_linked:
                target.node_id = outcome.node_id
            elif target.node_id is not None and outcome.node_id not in (None, target.node_id):
                self._book.drop(target.node_id, address)  # another node lives there now
                has_hope = True
            if target.node_id is not None and self._is_linked(target.node_id):
                return None
            if outcome.refusal is None:
                has_hope = True
            else:
                refusal = outcome.refusal
        return None if has_hope else refusal


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """At most until it is set; True if it was."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
