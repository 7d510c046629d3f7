"""Steps a replica as its driver does, on the virtual clock, and lets hazards strike at every commit."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from consensus.errors import SnapshotInstalled
from consensus.replica import Replica
from consensus.steps import Input, Output, Propose, ReadIndex
from node.testing.virtual import loop as virtual
from storage.errors import DiskFull
from storage.ids import NodeId

if TYPE_CHECKING:
    from tests.simulation.world import World

Frames = list[tuple[NodeId, bytes]]
Broken = DiskFull | SnapshotInstalled


class Life(virtual.Life):
    """One life of a node. When it dies, `World.stop` forgets it; what is still planned for it then does nothing."""

    def __init__(self, world: "World", node_id: NodeId) -> None:
        super().__init__()
        self.world = world
        self.node_id = node_id
        self.dice = random.Random(world.dice.random())

    def pause(self, seconds: float) -> None:
        self.paused_until = max(self.paused_until, self.world.clock.now + seconds)

    def resume(self) -> None:
        self.paused_until = 0.0

    def die(self) -> None:
        """Killed; it comes back later."""
        if self.is_alive:
            self.world.stop(self.node_id, restart_s=self.world.dice.random() * 2)


class Stepper:
    """`on_frames` and `on_output` are called as by a driver; `on_broken(replica, error)` when a commit has failed or a
    snapshot was installed: the replica is dead then. A process that dies between the commit and `on_output` has told
    nothing of it."""

    def __init__(
        self,
        life: Life,
        replica: Replica,
        on_frames: Callable[[Frames], None],
        on_output: Callable[[Output], None],
        on_broken: Callable[[Replica, Broken], None],
    ) -> None:
        self._life = life
        self._world = life.world
        self.replica = replica
        self._on_frames = on_frames
        self._on_output = on_output
        self._on_broken = on_broken
        self._is_broken = False
        self._inbox: list[Input] = []
        self._wake_at = float("inf")
        self._disk_until = 0.0
        self.wake()

    def give(self, given: Input) -> None:
        self._inbox.append(given)
        self.wake()

    def open_proposals(self) -> list[int]:
        """Those that the replica has not taken in."""
        return [given.token for given in self._inbox if isinstance(given, Propose | ReadIndex)]

    def wake(self, delay_s: float = 0.0) -> None:
        now = self._world.clock.now
        at = max(now + delay_s, self._life.paused_until, self._disk_until)
        if at < self._wake_at:
            self._wake_at = at
            self._world.clock.at(at - now, self._woken, at)

    def _woken(self, at: float) -> None:
        if not self._life.is_alive or self._is_broken or self._wake_at != at:
            return
        self._wake_at = float("inf")
        if max(self._life.paused_until, self._disk_until) > self._world.clock.now:
            self.wake()
        else:
            self._step()

    def _step(self) -> None:
        world, life = self._world, self._life
        inputs, self._inbox = self._inbox, []
        store = world.stores[life.node_id]
        world.steps += 1
        if life.node_id in world.full_disks or world.mix.happens("torn_commit", world.torn_commit_chance):
            store.fail_next_commit(DiskFull("planned"))
        try:
            output = self.replica.step(inputs, world.clock.now, self._on_frames)
        except (DiskFull, SnapshotInstalled) as error:
            self._is_broken = True
            self._on_broken(self.replica, error)
            return
        store.fail_next_commit(None)  # type: ignore[arg-type]  # it wrote nothing
        world.on_output(life.node_id, output)
        if world.mix.happens("lost_output", 0.001):
            life.die()
        elif world.mix.happens("slow_disk", 0.05):
            delay_s = world.dice.random() * 0.3
            self._disk_until = world.clock.now + delay_s
            world.clock.at(delay_s, self._speak, output)
        else:
            self._speak(output)

    def _speak(self, output: Output) -> None:
        if not self._life.is_alive:
            return  # durable, and never told
        self._on_output(output)
        self.wake(max(output.next_deadline - self._world.clock.now, 0.0))
