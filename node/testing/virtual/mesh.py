"""A mesh in one process on a virtual clock: whole nodes, a network that fails on demand, and time that costs nothing.

What happens is drawn from `seed`: the same seed and the same test give the same run.
"""

import asyncio
import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mesh.secrets import MeshSecret
from node import config
from node.rituals.registry import Registry
from node.testing.files import node_document, to_toml
from node.testing.harness import (
    DEADLINE_S,
    START_DEADLINE_S,
    Answer,
    MeshTestError,
    MeshUnderTest,
    RitualFunction,
    founders_of,
    node_names,
    tier_of,
)
from node.testing.virtual.lockstep import Lockstep
from node.testing.virtual.loop import Life, LoopClock
from node.testing.virtual.network import Network
from node.testing.virtual.parts import forget_applications, registry_of, virtual_parts
from node.testing.virtual.process import Machine, Process
from node.testing.virtual.requests import request
from node.testing.virtual.time import virtual_time

T = TypeVar("T")

POLL_S = 0.02
"""Of virtual time, between two looks at a condition."""

MESH_PORT, HTTP_PORT = 7781, 7780

SEED_VARIABLE = "MESHNODE_TEST_SEED"


class VirtualMesh(MeshUnderTest):
    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.rituals: Mapping[str, RitualFunction] = {}
        self.cpu_s: Mapping[str, float] = {}
        self.registry = Registry({})
        self._dice = random.Random(seed)  # noqa: S311 - a simulation
        self._chance = random.Random(self._dice.random()).getstate()  # noqa: S311
        self._clock = LoopClock()
        self._network = Network(self._clock.loop, random.Random(self._dice.random()))  # noqa: S311
        self._machines: dict[str, Machine] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="meshnode-"))
        self.locksteps: dict[Lockstep, None] = {}
        """CPU rituals that are not done, also those whose node is dead."""
        self._is_closed = False

    # -- time --

    @property
    def now(self) -> float:
        return self._clock.now

    def run_for(self, seconds: float) -> None:
        with self._inside():
            self._clock.run_for(seconds)

    def wait(self, what: str, condition: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T:
        ends_at = self.now + deadline_s
        while not (result := condition()):
            if self.now > ends_at:
                raise self._failed_wait(what, deadline_s)
            self.run_for(POLL_S)
        return result

    def request(self, machine: Machine, method: str, path: str, body: object, timeout_s: float) -> Answer:
        return self._run(request(machine.host.address, HTTP_PORT, method, path, body, timeout_s))

    # -- nodes --

    def start(
        self,
        cores: int = 3,
        edges: int = 0,
        leaves: int = 0,
        *,
        rituals: Sequence[RitualFunction] = (),
        cpu_s: Mapping[str, float] | None = None,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        deadline_s: float = START_DEADLINE_S,
    ) -> str:
        founders = founders_of(cores)
        self.rituals = {function.__name__: function for function in rituals}
        self.cpu_s = cpu_s or {}
        self.registry = registry_of(Registry.load(), self.rituals)
        MeshSecret.new().save(self._folder / "secret")
        names = node_names(cores, edges, leaves)
        addresses = {name: f"127.0.1.{number + 1}" for number, name in enumerate(names)}
        seeds = [f"{addresses[name]}:{MESH_PORT}" for name in names if tier_of(name) == "core"]
        for name, address in addresses.items():
            document = node_document(
                name=name,
                tier=tier_of(name),
                directory=self._folder / name,
                mesh={
                    "name": "test",
                    "secret_file": str(self._folder / "secret"),
                    "bind": address,
                    "port": MESH_PORT,
                    "bootstrap_expect": founders,
                    "zeroconf": False,
                    "seeds": seeds,
                },
                http=(address, HTTP_PORT),
                settings=settings or {},
            )
            self._add(name, address, document)
        for name in names:
            self.restart(name)
        return self.wait_ready(deadline_s)

    def nodes(self) -> list[str]:
        return list(self._machines)

    def __getitem__(self, name: str) -> Machine:
        try:
            return self._machines[name]
        except KeyError:
            raise MeshTestError(f"no node is called {name}; there are {', '.join(self._machines)}") from None

    def kill(self, name: str) -> None:
        machine = self[name]
        if machine.process is not None:
            self._bury(machine)
            machine.said.append(f"{self.now:9.3f} killed by the test")

    def stop(self, name: str) -> None:
        process = self._process(name)
        process.stop()
        self.wait(f"{name} has stopped", lambda: self[name].process is not process)

    def restart(self, name: str) -> None:
        machine = self[name]
        if machine.process is not None:
            raise MeshTestError(f"{name} runs: kill it or stop it first")
        with self._inside():
            machine.process = machine.host.life = process = Process(machine)
            process.start(self._clock.loop).add_done_callback(lambda task: self._on_end(machine, process, task))

    def pause(self, name: str) -> None:
        self._process(name).paused_until = float("inf")

    def resume(self, name: str) -> None:
        process = self._process(name)
        process.paused_until = 0.0
        self._clock.loop.thaw(process)

    def cut(self, source: str, target: str) -> None:
        self._network.cut(self[source].name, self[target].name)

    def _slow(self, source: str, target: str, delay_s: float) -> None:
        self._network.slow(self[source].name, self[target].name, delay_s)

    def heal(self) -> None:
        self._network.heal()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            for machine in self._machines.values():
                if machine.process is not None:
                    machine.process.is_alive = False
            for ritual in [*self.locksteps]:
                ritual.end()
            self._clock.close()
            forget_applications()
            shutil.rmtree(self._folder, ignore_errors=True)

    # -- within --

    def _add(self, name: str, address: str, document: Mapping[str, Mapping[str, object]]) -> None:
        folder = self._folder / name
        folder.mkdir()
        path = folder / "meshnode.toml"
        path.write_text(to_toml(document))
        dice = random.Random(self._dice.random())  # noqa: S311 - a simulation
        host = self._network.add_host(name, address)
        self._machines[name] = Machine(self, name, host, dice, config.load(path, {}))

    def _process(self, name: str) -> Process:
        process = self[name].process
        if process is None:
            raise MeshTestError(f"{name} does not run")
        return process

    def _bury(self, machine: Machine) -> None:
        """Its process is gone, with whatever it had not committed."""
        assert machine.process is not None
        machine.process.is_alive = False
        machine.process = None
        with self._inside():
            self._network.end_of(machine.host)
        machine.store.crash()

    def _on_end(self, machine: Machine, process: Process, task: Any) -> None:
        if machine.process is not process:
            return
        error = None if task.cancelled() else task.exception()
        machine.said.append(f"{self.now:9.3f} {'stopped' if error is None else f'failed: {error!r}'}")
        machine.process = None
        process.is_alive = False
        self._network.end_of(machine.host)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """A client's work, in virtual time."""
        with self._inside():
            return self._clock.run_until_done(work)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        if self._is_closed:
            raise MeshTestError("the mesh is closed")
        if asyncio.events._get_running_loop() is not None:
            raise MeshTestError("the virtual mesh has its own loop: make the test a plain function, not `async def`")
        outside = random.getstate()
        random.setstate(self._chance)
        try:
            with (
                virtual_time(self._clock, lambda life: 0.0, self._dice.randbytes, self._note),
                virtual_parts(self._network),
            ):
                yield
        finally:
            self._chance = random.getstate()
            random.setstate(outside)

    def _note(self, life: Life | None, level: str, event: Mapping[str, Any]) -> None:
        if isinstance(life, Process):
            facts = " ".join(f"{name}={value}" for name, value in event.items() if name != "event")
            life.machine.said.append(f"{self.now:9.3f} {level:7} {event['event']} {facts}")

    def _failed_wait(self, what: str, deadline_s: float) -> MeshTestError:
        error = super()._failed_wait(what, deadline_s)
        return MeshTestError(f"{error}\nseed {self.seed}; replay with {SEED_VARIABLE}={self.seed}")
