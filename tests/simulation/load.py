"""What is asked of the replicas: commands, in bursts, mostly of the leader."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.world import ReplicaWorld


class Load:
    def __init__(self, world: "ReplicaWorld") -> None:
        self.world = world
        self.burst = world.dice.choice([1, 3, 12])
        self.every_s = world.dice.choice([0.02, 0.05, 0.2])
        self.commands: dict[int, bytes] = {}
        """Token -> command, of all ever proposed."""
        world.clock.at(0.1, self._propose_some)

    def propose(self, command: bytes) -> int | None:
        """To the leader, as far as known; sometimes to another. Its token; None if nobody is there."""
        world, dice = self.world, self.world.dice
        if not world.running:
            return None
        is_informed = world.last_leader in world.running and (world.mix.is_over or dice.random() < 0.8)
        target = world.last_leader if is_informed else world.any_running()
        assert target is not None
        token = len(self.commands)
        self.commands[token] = command
        world.running[target].propose(token, command)
        return token

    def _propose_some(self) -> None:
        if self.world.mix.is_over:
            return
        dice = self.world.dice
        for _ in range(dice.randrange(self.burst) + 1):
            kind = b"check" if dice.random() < 0.02 else b"c"
            self.propose(b"%s%d" % (kind, len(self.commands)))
        self.world.clock.at(dice.random() * 2 * self.every_s, self._propose_some)
