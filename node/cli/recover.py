"""`meshnode --config FILE recover`: one surviving node goes on alone after a majority was lost for good.

Refused when it is unnecessary: the mesh has one voter, or enough voters answer to be a majority with this node. The
change is one transaction; what was there before is copied first.
"""

import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from consensus.recovery import Survivor, examine, found_alone
from mesh.discovery.remembered import load_peers
from mesh.errors import MeshError
from mesh.identity import Identity
from mesh.links.book import KnownPeer
from mesh.probe import who_answers
from mesh.proposals import FoundingRecord, succeed
from mesh.secrets import Secrets
from mesh.trust import make_trust
from node.cli import render
from node.cli.exits import CommandError, Exit
from node.cli.offline import configured, now_ms
from node.common import STORE_DIRECTORY
from node.config import Config
from node.wiring import open_store, put_founding, read_founding
from storage.environment import Environment
from storage.errors import StorageError
from storage.ids import NodeId
from storage.limits import DISK_LOW_BYTES

PROBE_S = 2.0
"""For a node to answer: on one network it takes milliseconds, across the world half a second."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is known before anything is done."""

    own: NodeId
    founding: FoundingRecord
    survivor: Survivor
    answering: Mapping[NodeId, str]
    """Other voters that run, and where they answer."""
    asked: Mapping[NodeId, tuple[str, ...]]
    """Where each was looked for, beside the seeds."""
    names: Mapping[NodeId, str]
    data_dir: Path

    @property
    def refusal(self) -> str | None:
        """Why recovering is unnecessary."""
        voters = self.survivor.voters
        if voters == (self.own,):
            return "the mesh has one voter, this node: nothing is lost; start it"
        majority = len(voters) // 2 + 1
        here = len(self.answering) + (self.own in voters)
        if here >= majority:
            answering = ", ".join(f"{self.name(node)} at {address}" for node, address in self.answering.items())
            return (
                f"{majority} of the {len(voters)} voters make a majority, and {here} are there: this one, and "
                f"{answering}. Start this node: the mesh goes on without losing anything"
            )
        return None

    def name(self, node: NodeId) -> str:
        return f"{self.names[node]} ({node})" if self.names.get(node) else node


def run(arguments: Namespace) -> int:
    config = configured(arguments)
    store, identity = _opened(config)
    try:
        case = _case(config, identity, store)
        facts = facts_of(case)
        if not arguments.json:
            print(text_of(case))
        if case.refusal is not None:
            if arguments.json:
                render.print_json(facts)
            raise CommandError(f"not recovered: {case.refusal}", Exit.FAILED, code="unnecessary")
        if arguments.dry_run:
            if arguments.json:
                render.print_json(facts)
            else:
                print("\nThis was a dry run: nothing was changed. Run it on every node that survives.")
            return Exit.OK
        if not arguments.yes:
            _ask(case)
        done = _recover(case, store, keeps_copy=not arguments.no_copy)
    except StorageError as error:
        raise CommandError(str(error), Exit.FAILED, code=error.code) from None
    finally:
        store.close()
    if arguments.json:
        render.print_json({**facts, **done})
    else:
        print(f"\nrecovered: this node is the only voter of the new mesh {done['mesh_id']}.")
        if done["copy"]:
            print(f"The data as it was is in {done['copy']}; to go back, stop the node and put it in place of")
            print(f"{case.data_dir / STORE_DIRECTORY}. Remove it when nothing is missed.")
        print("Next: start this node. Every other node joins it as a new one, with an empty data directory.")
    return Exit.OK


def facts_of(case: Case) -> dict[str, Any]:
    found = case.survivor
    return {
        "node_id": case.own,
        "mesh_id": case.founding.mesh_id,
        "former": list(case.founding.former),
        "voters": [
            {"node_id": node, "name": case.names.get(node), "answers_at": case.answering.get(node)}
            for node in found.voters
        ],
        "term": found.term,
        "last_index": found.last_index,
        "last_term": found.last_term,
        "commit_index": found.commit_index,
        "applied_index": found.applied_index,
        "uncertain_count": found.uncertain_count,
        "uncertain": [{"index": one.index, "term": one.term, "kind": one.kind} for one in found.uncertain],
        "last_sign_at": None if found.last_sign_ms is None else _iso(found.last_sign_ms),
        "quarantined": found.is_quarantined,
        "refusal": case.refusal,
    }


def text_of(case: Case) -> str:
    found = case.survivor
    majority = len(found.voters) // 2 + 1
    rows = [
        ("this node", case.name(case.own) + ("" if case.own in found.voters else ", not a voter")),
        ("mesh", case.founding.mesh_id),
        ("log", f"up to index {found.last_index} of term {found.last_term}; this node has seen term {found.term}"),
        ("committed", f"up to index {found.commit_index} at least, applied up to {found.applied_index}"),
        ("last sign", "none" if found.last_sign_ms is None else render.local(_iso(found.last_sign_ms))),
    ]
    lines = [f"{name:<10} {render.clean(value)}" for name, value in rows]
    lines.append(f"voters     {len(found.voters)}, of which {majority} make a majority:")
    for node in found.voters:
        lines.append(f"           {case.name(node)}: {_answer(case, node)}")
    if case.refusal is not None:
        return "\n".join(lines)
    lines += ["", "Survives:", render.paragraphs(f"everything up to index {found.last_index}.")]
    if found.uncertain_count:
        shown = ", ".join(f"{one.index} (term {one.term}, {one.kind})" for one in found.uncertain)
        more = found.uncertain_count - len(found.uncertain)
        lines.append(
            render.paragraphs(
                f"Of these, what comes after index {found.commit_index} ({found.uncertain_count} of them) may never "
                "have been accepted by a majority. It is kept, and counts as accepted from then on: "
                f"{shown}{f' and {more} more' if more > 0 else ''}."
            )
        )
    lines += [
        "",
        "May be lost:",
        render.paragraphs(
            f"everything that a majority without this node accepted after index {found.last_index} of term "
            f"{found.last_term}. This node cannot know whether there is any. Compare the survivors: the one with the "
            "highest term of its last entry, then the highest index, has lost the least; recover that one, and only it."
        ),
    ]
    if found.is_quarantined:
        lines += ["", render.paragraphs(
            "WARNING: this replica was in quarantine: its tables differ from those a majority had. Recover another "
            "node if any survives, or restore a backup."
        )]  # fmt: skip
    if case.answering:
        lines += ["", render.paragraphs(
            f"{', '.join(case.name(node) for node in case.answering)} survived too and runs: stop it before recovering "
            "here; afterwards it is refused until its data directory is moved away."
        )]  # fmt: skip
    return "\n".join(lines)


def _opened(config: Config) -> tuple[Environment, Identity]:
    if not (config.data_dir / STORE_DIRECTORY / "data.mdb").exists():
        raise CommandError(
            f"{config.data_dir} holds no data of a node",
            Exit.FAILED,
            "recover works on a node that survived; to begin anew from a backup use restore",
            "no_data",
        )
    try:
        identity = Identity.load_or_create(config.data_dir / "identity")
        return open_store(config), identity
    except (StorageError, MeshError) as error:
        raise CommandError(str(error), Exit.FAILED, code=error.code) from None


def _case(config: Config, identity: Identity, store: Environment) -> Case:
    with store.read() as txn:
        founding, survivor = read_founding(txn), examine(txn)
    if founding is None or founding.state != "founded" or survivor is None:
        raise CommandError(
            "this node never took part in a mesh", Exit.FAILED, "there is nothing to recover; start it", "not_founded"
        )
    peers = load_peers(config.data_dir)
    try:
        secrets = Secrets.load(config.secret_file) if config.secret_file is not None else None
        context = make_trust(identity, secrets, config.mesh.name, time.time()).client
    except (MeshError, OSError) as error:
        raise CommandError(
            f"whether the other voters run cannot be asked: {error}", Exit.FAILED, "mend [mesh] secret_file"
        ) from None
    found = who_answers(_addresses(peers, config.mesh.seeds), context, PROBE_S)
    return Case(
        own=identity.node_id,
        founding=founding,
        survivor=survivor,
        answering={node: found[node] for node in survivor.voters if node in found and node != identity.node_id},
        asked={peer.node_id: peer.addresses for peer in peers},
        names={identity.node_id: config.node.name, **{peer.node_id: peer.name for peer in peers if peer.name}},
        data_dir=config.data_dir,
    )


def _addresses(peers: tuple[KnownPeer, ...], seeds: list[str]) -> list[str]:
    return [*(address for peer in peers for address in peer.addresses), *seeds]


def _ask(case: Case) -> None:
    if not sys.stdin.isatty():
        raise CommandError("not recovered: nobody can be asked", Exit.USAGE, "look at --dry-run, then add --yes")
    print(
        "\nThe old mesh must never come back beside the new one. Are the lost nodes lost for good? Type yes: ", end=""
    )
    sys.stdout.flush()
    if sys.stdin.readline().strip() != "yes":
        raise CommandError("not recovered: you did not type yes", Exit.FAILED)


def _recover(case: Case, store: Environment, *, keeps_copy: bool) -> dict[str, Any]:
    copy = _copy(case.data_dir, store) if keeps_copy else None
    old = case.founding
    record = succeed(case.own, (*old.former, old.mesh_id), old.floor, now_ms())
    with store.write() as txn:
        found_alone(txn, case.own)
        put_founding(txn, record)
    return {"mesh_id": record.mesh_id, "former": list(record.former), "copy": None if copy is None else str(copy)}


def _copy(data_dir: Path, store: Environment) -> Path:
    statistics = store.statistics()
    missing = statistics.used_bytes + DISK_LOW_BYTES - statistics.disk_free_bytes
    if missing > 0:
        raise CommandError(
            f"a copy of the data takes {render.size(statistics.used_bytes)}, and there is too little space",
            Exit.FAILED,
            f"make room for {render.size(missing)}, or copy {data_dir} elsewhere yourself and add --no-copy",
            "disk_low",
        )
    path = data_dir / f"{STORE_DIRECTORY}.before-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    try:
        store.copy_to(path)
    except (StorageError, OSError) as error:
        shutil.rmtree(path, ignore_errors=True)
        raise CommandError(f"the data cannot be copied: {error}", Exit.FAILED) from None
    return path


def _answer(case: Case, node: NodeId) -> str:
    if node == case.own:
        return "this node"
    if node in case.answering:
        return f"answers at {case.answering[node]}"
    asked = ", ".join(case.asked.get(node, ()))
    return f"does not answer at {asked}" if asked else "no address of it is remembered; seeds were asked"


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
