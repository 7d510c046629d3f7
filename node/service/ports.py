"""What the use-cases need of the rest of the house, as small protocols. `node.app` hands in the real things, tests hand
in twins."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from enum import IntEnum
from typing import Any, Protocol

import msgspec

from consensus.membership import Change, Configuration, Plan
from consensus.state.commands import Answer, AnyCommand
from consensus.state.events import Numbered
from consensus.state.rows import Tier
from node.scheduler.judgement import Outlook
from storage.dump import Header
from storage.ids import InstanceId, NodeId, SessionId
from storage.space import Space
from storage.transactions import Transaction


class NodeFacts(msgspec.Struct, kw_only=True):
    """Who this node is; fixed for the life of the process, except for a tier that the mesh chooses."""

    node_id: NodeId
    instance_id: InstanceId
    name: str
    tier: Tier
    tier_why: str = "configured"
    mesh_name: str
    data_dir: str
    http_address: str = ""


class GroupStatus(Protocol):
    @property
    def node_id(self) -> NodeId: ...
    @property
    def configuration(self) -> Configuration: ...
    @property
    def caught_up(self) -> Sequence[NodeId]: ...
    @property
    def is_removed(self) -> bool: ...
    @property
    def role(self) -> IntEnum: ...
    @property
    def term(self) -> int: ...
    @property
    def leader(self) -> NodeId | None: ...
    @property
    def commit_index(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def voters(self) -> Sequence[NodeId]: ...
    @property
    def match_index(self) -> Mapping[NodeId, int]: ...
    @property
    def first_index(self) -> int: ...
    @property
    def is_quarantined(self) -> bool: ...
    @property
    def quarantine_reason(self) -> str: ...
    @property
    def withdrawn(self) -> Sequence[NodeId]: ...
    @property
    def installed_index(self) -> int: ...
    @property
    def dropped(self) -> Mapping[str, int]: ...


class GroupPort(Protocol):
    """Of `consensus.group.Group`. `propose`, `barrier` and `catch_up` raise `ConsensusError`."""

    async def propose(self, command: AnyCommand, deadline_s: float = ...) -> Answer: ...
    async def barrier(self, deadline_s: float = ...) -> int: ...
    async def catch_up(self, deadline_s: float = ...) -> int: ...
    def age_s(self) -> float | None: ...
    def read(self) -> AbstractContextManager[Transaction]: ...
    def status(self) -> GroupStatus: ...
    def subscribe_events(self, callback: Callable[[list[Numbered]], None]) -> object: ...
    def subscribe_status(self, callback: Callable[[Any], None]) -> object: ...


class SnapshotsPort(Protocol):
    """Of `node.snapshots.Snapshots`. `progress`: of a snapshot that this node needs."""

    @property
    def progress(self) -> Any: ...
    @property
    def checked_at(self) -> float | None: ...


class ChangesPort(Protocol):
    """Of `consensus.changes.Changes`."""

    async def ask(
        self,
        changes: Sequence[Change],
        *,
        is_dry_run: bool = ...,
        via: Sequence[NodeId] = ...,
        deadline_s: float = ...,
    ) -> Plan: ...


class StewardPort(Protocol):
    """Of `node.steward.Steward`."""

    @property
    def actions(self) -> Iterable[Any]: ...


class MeshPort(Protocol):
    """Of `mesh.mesh.Mesh`."""

    def peers(self) -> Sequence[Any]: ...
    def diary(self) -> Sequence[Any]: ...
    def counters(self) -> Mapping[str, int]: ...
    def trust_status(self) -> Any: ...
    def lags(self) -> tuple[int, float]: ...
    @property
    def founding_status(self) -> str: ...
    @property
    def mesh_id(self) -> str | None: ...


class LookoutPort(Protocol):
    """Of `node.lookout.Lookout`."""

    def outlook(self) -> Outlook: ...


class ExecutorPort(Protocol):
    def statistics(self) -> Any: ...


class RitualPort(Protocol):
    """Of `node.rituals.definition.RitualDefinition`."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def timeout_s(self) -> float | None: ...
    def check(self, parameters: Mapping[str, Any]) -> str | None: ...
    def to_json(self) -> dict[str, Any]: ...


class RegistryPort(Protocol):
    """Of `node.rituals.registry.Registry`: a mapping from names, and what could not be loaded."""

    def get(self, name: str, /) -> RitualPort | None: ...
    def __iter__(self) -> Iterator[str]: ...
    @property
    def problems(self) -> Sequence[Any]: ...


class LiveView(Protocol):
    @property
    def node_id(self) -> NodeId: ...
    @property
    def attempt(self) -> int: ...
    @property
    def progress(self) -> float | None: ...
    @property
    def message(self) -> str: ...
    @property
    def lines(self) -> list[str]: ...


class LivePort(Protocol):
    def get(self, session_id: SessionId, branch_index: int, attempt: int) -> LiveView | None: ...


class StorePort(Protocol):
    def statistics(self) -> Any: ...


class DiskPort(Protocol):
    """Of `node.disk.DiskWatch`. The checks raise ServiceError `disk_low`, `disk_full`."""

    @property
    def space(self) -> Space: ...
    def check_new_work(self) -> None: ...
    def check_writing(self) -> None: ...


class BackupPort(Protocol):
    """Of `node.backups.Backup`."""

    @property
    def header(self) -> Header: ...
    def pieces(self) -> AsyncIterator[bytes]: ...


class BackupsPort(Protocol):
    def take(self) -> AbstractAsyncContextManager[BackupPort]: ...
