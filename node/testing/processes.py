"""A mesh of real daemons on this machine, whose network fails on demand."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from mesh.secrets import MeshSecret
from node.rituals.registry import child_environment
from node.testing import relayed
from node.testing.daemon import Daemon
from node.testing.files import free_ports, node_document, to_toml
from node.testing.harness import (
    START_DEADLINE_S,
    MeshTestError,
    MeshUnderTest,
    RitualFunction,
    founders_of,
    node_names,
    tier_of,
)
from node.testing.local import DaemonMesh
from node.testing.relay import Relay
from node.testing.relayed import NAME_VARIABLE, RELAY_VARIABLE


class ProcessMesh(DaemonMesh, MeshUnderTest):
    """Every node is a process of its own with its own data directory, configuration and loopback ports; whatever
    happens, `close` ends every process that was started, by its process id."""

    def __init__(self, seed: int = 0, directory: Path | None = None) -> None:
        """`directory`: where the nodes live, kept at the end; without one, a temporary one is made and removed."""
        self.seed = seed
        self.daemons = {}
        self._kept = directory
        self._folder = directory or Path(tempfile.mkdtemp(prefix="meshnode-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._relay: Relay | None = None

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
        targets = [_target(function) for function in rituals]
        MeshSecret.new().save(self._folder / "secret")
        names = node_names(cores, edges, leaves)
        ports = free_ports(2 * len(names))
        mesh_ports = dict(zip(names, ports[: len(names)], strict=True))
        seeds = [f"127.0.0.1:{port}" for name, port in mesh_ports.items() if tier_of(name) == "core"]
        self._relay = Relay({port: name for name, port in mesh_ports.items()})
        host, port = self._relay.address
        environment = {
            "PYTHONPATH": child_environment()["PYTHONPATH"],  # so that they find what this process finds
            RELAY_VARIABLE: f"{host}:{port}",
        }
        for name, http_port in zip(names, ports[len(names) :], strict=True):
            daemon = self.daemons[name] = Daemon(
                name=name,
                directory=self._folder / name,
                http_host="127.0.0.1",
                http_port=http_port,
                mesh_port=mesh_ports[name],
                program=("-P", relayed.__file__),
                environment={**environment, NAME_VARIABLE: name},
            )
            daemon.directory.mkdir(exist_ok=True)
            document = node_document(
                name=name,
                tier=tier_of(name),
                directory=daemon.directory,
                mesh={
                    "name": "test",
                    "secret_file": str(self._folder / "secret"),
                    "bind": "127.0.0.1",
                    "port": daemon.mesh_port,
                    "bootstrap_expect": founders,
                    "zeroconf": False,
                    "seeds": seeds,
                },
                http=(daemon.http_host, daemon.http_port),
                settings=settings or {},
            )
            if targets:
                document.setdefault("execution", {}).setdefault("rituals", targets)
            daemon.config_path.write_text(to_toml(document))
        for name in names:
            self.restart(name)
        return self.wait_ready(deadline_s)

    def cut(self, source: str, target: str) -> None:
        self._network(lambda relay: relay.cut(self[source].name, self[target].name))

    def _slow(self, source: str, target: str, delay_s: float) -> None:
        self._network(lambda relay: relay.slow(self[source].name, self[target].name, delay_s))

    def heal(self) -> None:
        self._network(lambda relay: relay.heal())

    def close(self) -> None:
        super().close()
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        if self._kept is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _network(self, do: Callable[[Relay], None]) -> None:
        if self._relay is None:
            raise MeshTestError("the mesh does not run: start it first")
        do(self._relay)


def _target(function: RitualFunction) -> str:
    """Where other processes find it. MeshTestError if they cannot."""
    module, name = function.__module__, function.__qualname__
    try:
        found = getattr(import_module(module), name, None)
    except ImportError:
        found = None
    if found is not function:
        raise MeshTestError(
            f"the ritual {name} cannot be found by the nodes, which are processes of their own: make it a function at "
            f"the top of a module that can be imported (now it is {module}.{name})"
        )
    return f"{module}:{name}"
