"""What the engine finds in place of the clock, the dice, sockets and dumps that it would use by itself."""

import random
import threading


class Surroundings(threading.local):
    """Of the engine that is being stepped on this thread."""

    now: float = 0.0
    dice: random.Random = random.Random(0)  # noqa: S311  # replaced before every use; nothing secret comes from it


surroundings = Surroundings()


class Dice:
    """In place of the module `random`."""

    @staticmethod
    def random() -> float:
        return surroundings.dice.random()


class NoPoller:
    def poll(self, timeout: float) -> None:
        """There are no sockets."""


class NoSnapshots:
    """In place of the engine's serializer: nothing is dumped, and snapshots go their own way (`consensus.snapshot`)."""

    def checkSerializing(self) -> tuple[int, None]:
        return 0, None

    def cancelTransmisstion(self, node: object) -> None:
        """There is none."""
