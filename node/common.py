"""What the parts that every tier has are told: the configuration in their words. Light: a Leaf imports it."""

import platform
from collections.abc import Mapping

from consensus.state.limits import LABEL_CHARACTERS_MAX
from consensus.state.rows import RitualOffer, Tier
from consensus.state.versions import labelled
from mesh.settings import MeshSettings
from mesh.tiers import AUTO
from node import __version__
from node.config import Config, join_host_port
from node.executor.work import ExecutorSettings
from node.http.guard import load_token
from node.rituals.definition import RitualDefinition
from storage.ids import NodeId

STORE_DIRECTORY = "consensus"
"""In `data_dir`: the replica."""


def mesh_settings(config: Config, tier: Tier) -> MeshSettings:
    """`tier`: as it is decided so far."""
    return MeshSettings(
        mesh_name=config.mesh.name,
        node_name=config.node.name,
        data_dir=config.data_dir,
        tier=tier,
        is_auto=config.node.tier == AUTO,
        bind_host=config.mesh_bind,
        port=config.mesh.port,
        advertise=config.mesh.advertise,
        http_address=join_host_port(config.http.bind, config.http.port),
        bootstrap_expect=config.mesh.bootstrap_expect,
        seeds=config.mesh.seeds,
        zeroconf=config.mesh.zeroconf,
        interfaces=config.mesh.interfaces,
        software=labelled(__version__),
        secret_file=config.secret_file,
    )


def executor_settings(config: Config, node_id: NodeId) -> ExecutorSettings:
    return ExecutorSettings(
        node_id=node_id,
        slots=config.slots,
        async_slots=config.execution.async_slots,
        memory_bytes_max=config.execution.memory_mb_max << 20,
        scratch_directory=config.data_dir / "scratch",
    )


def ritual_offers(registry: Mapping[str, RitualDefinition]) -> dict[str, RitualOffer]:
    return {name: RitualOffer(version=ritual.version, kind=ritual.kind) for name, ritual in registry.items()}


def labels(config: Config) -> dict[str, str]:
    """What the operator says, and what the machine is."""
    return {
        **config.node.labels,
        "arch": platform.machine().lower()[:LABEL_CHARACTERS_MAX],
        "os": platform.system().lower()[:LABEL_CHARACTERS_MAX],
    }


def ritual_limits(registry: Mapping[str, RitualDefinition]) -> dict[str, int]:
    return {name: ritual.concurrency for name, ritual in registry.items() if ritual.concurrency is not None}


def named_rituals(config: Config) -> dict[str, str]:
    """Name -> `module:function`, of those that the configuration names."""
    return {target.rpartition(":")[2]: target for target in config.execution.rituals}


def http_token(config: Config) -> str | None:
    """Raises HttpConfigError."""
    return load_token(config.token_file) if config.token_file is not None else None
