"""What each part is told: the configuration in the words of the packages below."""

import contextlib
import shutil
from collections.abc import Mapping

import msgspec

from consensus.autopilot import Policy
from consensus.journal import TABLES as JOURNAL_TABLES
from consensus.journal import read_configuration
from consensus.state import tables
from consensus.state.commands import RegisterMember
from consensus.state.versions import labelled
from mesh.proposals import FoundingRecord
from mesh.tiers import AUTO
from node import __version__
from node.backups import DIRECTORY as BACKUP_DIRECTORY
from node.common import STORE_DIRECTORY, http_token, labels, ritual_limits, ritual_offers
from node.config import Config, join_host_port
from node.http.server import HttpServer
from node.rituals.registry import Registry
from node.service.ports import NodeFacts
from node.service.service import NodeService
from node.tiers import CONFIGURED, Decided, candidate, in_mesh
from storage import codec
from storage.datafile import REMEDY
from storage.environment import Environment
from storage.errors import CorruptStore
from storage.ids import NodeId
from storage.meta import FORMAT
from storage.migration import Migration, migrate
from storage.opening import DATA_FILE
from storage.transactions import Store, Transaction

FOUNDING_TABLE = "founding"
_HAD_STORE = "identity/had-store"
"""An empty file beside the key: the node of this key has had a store."""
MIGRATIONS: Mapping[int, Migration] = {}
"""Store format -> the step to the next one; here, because only here all tables are known."""

STORE_TABLES = (*JOURNAL_TABLES, *tables.TABLES, FOUNDING_TABLE)
_FOUNDING_KEY = b"record"


class FoundingRecords:
    """`mesh.bootstrap`'s memory, in the store, so that it is as durable as the log it leads to."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def load(self) -> FoundingRecord | None:
        with self._store.read() as txn:
            return read_founding(txn)

    def save(self, record: FoundingRecord) -> None:
        """Not on the loop's thread: it waits for the disk."""
        with self._store.write() as txn:
            put_founding(txn, record)


def read_founding(txn: Transaction) -> FoundingRecord | None:
    data = txn.get(FOUNDING_TABLE, _FOUNDING_KEY)
    return None if data is None else codec.decode(data, FoundingRecord)


def put_founding(txn: Transaction, record: FoundingRecord) -> None:
    txn.put(FOUNDING_TABLE, _FOUNDING_KEY, codec.encode(record))


def open_store(config: Config) -> Environment:
    """Makes the data directory if need be; refuses one that another daemon uses, or whose store is gone although its
    node goes on: it would have forgotten its votes."""
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, note = config.data_dir / STORE_DIRECTORY, config.data_dir / _HAD_STORE
    if note.exists() and not (path / DATA_FILE).exists():
        raise CorruptStore(f"{path / DATA_FILE} is missing, though it was here. {REMEDY}", path)
    store = Environment.open(path, STORE_TABLES, software=f"meshnode {__version__}", migrations=MIGRATIONS)
    with contextlib.suppress(OSError):  # a full disk: at the next start
        note.parent.mkdir(mode=0o700, exist_ok=True)
        note.touch(mode=0o600)
    shutil.rmtree(config.data_dir / BACKUP_DIRECTORY, ignore_errors=True)  # of a process that was killed
    return store


def decided_tier(config: Config, node_id: NodeId, store: Store) -> Decided:
    """What a node with a replica is at its start."""
    if config.node.tier != AUTO:
        return Decided(config.node.tier, CONFIGURED)
    with store.read() as txn:
        founding, stored = read_founding(txn), read_configuration(txn)
    if founding is None or founding.state != "founded":
        return candidate()
    voters = founding.voters if stored is None else stored[1].voters
    return in_mesh(is_voter=node_id in voters)


def migrate_rows(store: Environment, number: int) -> None:
    """Of a store into which rows of this older format were put. Raises OlderFormat."""
    store.meta = msgspec.structs.replace(store.meta, format=number)
    migrate(store, FORMAT, MIGRATIONS)


def voting_policy(config: Config) -> Policy:
    mesh = config.mesh
    return Policy(voters_wanted=mesh.voters_wanted or mesh.bootstrap_expect, grace_s=mesh.voter_grace_s)


def http_server(config: Config, service: NodeService) -> HttpServer:
    return HttpServer(
        service,
        bind=config.http.bind,
        port=config.http.port,
        token=http_token(config),
        allow_unauthenticated=config.http.allow_unauthenticated,
    )


def registration(
    config: Config, facts: NodeFacts, registry: Registry, at_ms: int, *, takes_work: bool
) -> RegisterMember:
    return RegisterMember(
        node_id=facts.node_id,
        instance_id=facts.instance_id,
        name=facts.name,
        tier=facts.tier,
        address=join_host_port(config.mesh_bind, config.mesh.port),
        http_address=join_host_port(config.http.bind, config.http.port),
        slots=config.slots if takes_work else 0,
        async_slots=config.execution.async_slots if takes_work else 0,
        rituals=ritual_offers(registry),
        software=labelled(__version__),
        at_ms=at_ms,
        labels=labels(config),
        ritual_limits=ritual_limits(registry),
    )
