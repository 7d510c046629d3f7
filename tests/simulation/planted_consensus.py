"""Rules of the replica, each taken away once: the rows of faults of the engine (section 4 of the design), and what must
be durable before it is said."""

from typing import Any

import pysyncobj.syncobj
from msgspec.structs import replace

from consensus import engine
from consensus.election import Election
from consensus.engine import Engine
from consensus.guard import Guard
from consensus.journal import Journal
from consensus.limits import RaftSettings
from consensus.messages import AppendEntries, Commit, NextIndex, Vote, pack_frames
from consensus.reads import ReadRounds, Reads
from consensus.replica import Replica
from storage.errors import DiskFull
from storage.ids import NodeId
from storage.transactions import Transaction
from tests.simulation import world
from tests.simulation.machine import RecordingMachine
from tests.simulation.planting import Patch, Planted
from tests.simulation.process import Process
from tests.simulation.stepping import Broken
from tests.simulation.world import ReplicaWorld

DIVERGED = "|".join(
    [
        "applies",
        "watchers are told",
        "tables differ",
        "acknowledged commands are lost",
        "two leaders",
        "never cut",
        "conflict_below_commit",
        "went back",
    ]
)


def row_1(patch: Patch) -> None:
    patch.setattr(Guard, "_known", lambda self, entries: 0)


def rows_1_to_3(patch: Patch) -> None:
    def stock(self: Guard, peer: NodeId, message: AppendEntries, now: float) -> None:
        self.election.heard_leader(now)
        self.engine.hand_over(
            peer,
            {
                "type": "append_entries",
                "term": message.sender_term,
                "commit_index": message.commit_index,
                "entries": message.entries,
                "prevLogIdx": message.prev_index,
                "prevLogTerm": message.prev_term,
            },
        )

    patch.setattr(Guard, "_on_append", stock)


def row_3(patch: Patch) -> None:
    patch.setattr(Guard, "_may_reject", lambda self, *_: True)


def row_4_terms(patch: Patch) -> None:
    patch.setattr(Guard, "_adopt_term", lambda self, term: None)


def row_5(patch: Patch) -> None:
    patch.setattr(Guard, "_counts", lambda self, peer, term: True)


def row_7(patch: Patch) -> None:
    """The engine's own sender, which cuts large entries into parts of a pickle."""

    real = engine._Outbox.send

    def send(self: Any, node: Any, message: dict[str, Any]) -> bool:
        if message["type"] != "append_entries":
            return bool(real(self, node, message))
        places = message["prevLogIdx"], message["prevLogTerm"]
        said = AppendEntries(message["term"], message["commit_index"], *places, message["entries"])
        self.engine.owner.on_send(node.id, said)
        return True

    def send_entries(self: Engine) -> None:
        self._SyncObj__conf.appendEntriesBatchSizeBytes = 2
        pysyncobj.syncobj.SyncObj._SyncObj__sendAppendEntries(self)

    patch.setattr(engine._Outbox, "send", send)
    patch.setattr(Engine, "_SyncObj__sendAppendEntries", send_entries)


def row_8(patch: Patch) -> None:
    real = RecordingMachine.apply

    def apply(self: RecordingMachine, txn: Transaction, index: int, command: bytes) -> Any:
        if command == b"c20":
            raise KeyError(command)
        return real(self, txn, index, command)

    patch.setattr(RecordingMachine, "apply", apply)


def row_10(patch: Patch) -> None:
    patch.setattr(Election, "before_tick", lambda self, now: None)


def row_11(patch: Patch) -> None:
    real = world.draw_settings

    def believing(dice: Any) -> RaftSettings:
        return replace(real(dice), leader_fallback_s=30.0)

    patch.setattr(world, "draw_settings", believing)


def row_12(patch: Patch) -> None:
    """What was appended waits for the next heartbeat."""
    patch.setattr(Engine, "_send_new", lambda self: None)


def row_14(patch: Patch) -> None:
    patch.setattr(Guard, "_holds", lambda self, index, term: index <= self.engine.journal.last_index)


def commits_are_told_to_all(patch: Patch) -> None:
    """As the engine's snapshot messages do: also to those of whom it is not known what they hold."""
    real = Replica._tell_commit

    def tell(self: Replica) -> None:
        flows, index = self.engine.flows, self.engine.commit_index
        if self.engine.is_leader and index > 1:
            for peer in self.engine.peers:
                if self.engine.is_connected(peer) and flows[peer].commit_told < index:
                    flows[peer].commit_told = index
                    said = Commit(self.engine.term, index, self.journal.term_at(index))
                    self._outbox.insert(0, (peer, said))
        real(self)

    patch.setattr(Replica, "_tell_commit", tell)


def row_15(patch: Patch) -> None:
    real = Journal.__init__

    def forget(self: Journal, *arguments: Any) -> None:
        real(self, *arguments)
        self.applied_index = 0

    patch.setattr(Journal, "__init__", forget)


# -- before it is said --


class Hasty(Process):
    """When its commit fails, some of what it was about to say is out already."""

    kinds: tuple[type, ...] = ()
    answers = False
    is_hasty = False

    def _on_broken(self, replica: Replica, error: Broken) -> None:
        if self.is_hasty and isinstance(error, DiskFull):
            self._blurt_out(replica)
        super()._on_broken(replica, error)

    def _blurt_out(self, replica: Replica) -> None:
        network, load = self.world.network, self.world.load
        said = [said for said in replica._outbox if isinstance(said[1], self.kinds)]
        for peer, frame in pack_frames(said, 1 << 20):
            network.send(self.node_id, peer, frame)
            network.flush(self.node_id, peer)  # before the link breaks with the process
        for resolved in replica._resolved if self.answers else ():
            if resolved.error is None and resolved.token >= 0:
                self.world.checks.acked[resolved.token] = load.commands[resolved.token]


class Contested(ReplicaWorld):
    """Nobody asks before an election (the base of the fault), and all lose patience at once: votes are split."""

    def __init__(self, seed: int, nodes: int) -> None:
        super().__init__(seed, nodes)
        self.settings = replace(self.settings, election_min_s=0.5, election_max_s=0.55)

    def check_end(self) -> None:
        self.checks.tables(self.stores)


def hasty(*kinds: type, answers: bool = False) -> type[ReplicaWorld]:
    process = type("HastyProcess", (Hasty,), {"kinds": kinds, "answers": answers})
    return type("HastyWorld", (ReplicaWorld,), {"process_type": process, "torn_commit_chance": 0.02})


def haste(patch: Patch) -> None:
    patch.setattr(Hasty, "is_hasty", True)


# -- reads --


def believe_to_lead(patch: Patch) -> None:
    patch.setattr(ReadRounds, "_count", lambda self, others, number: 99)


def read_before_an_own_commit(patch: Patch) -> None:
    patch.setattr(Reads, "_is_of_this_term", lambda self, index: True)


TORN = ("crash", "transfer", "break_link")

PLANTED = [
    Planted(
        rule="row 1",
        removed="a follower keeps entries that it holds already",
        caught_by=DIVERGED,
        plant=row_1,
        seed=1,
    ),
    Planted(
        rule="rows 1 to 3",
        removed="the guard of appended entries altogether",
        caught_by="",
        plant=rows_1_to_3,
        seed=1,
    ),
    Planted(
        rule="row 3",
        removed="one rejection a probe",
        caught_by="back for the",
        plant=row_3,
        seed=0,
    ),
    Planted(
        rule="row 4",
        removed="adopting a higher term from any message",
        caught_by="",
        plant=row_4_terms,
        seed=9,
    ),
    Planted(
        rule="row 5",
        removed="one vote a voter and term",
        caught_by=DIVERGED,
        plant=row_5,
        seed=29,
        base=row_10,
        nodes=5,
        world=Contested,
        weights=("crash", "partition", "crash"),
        hazards=("retired",),
        times=30.0,
    ),
    Planted(
        rule="row 7",
        removed="a sender of its own: the engine pickles entries above the batch size",
        caught_by="pickle",
        plant=row_7,
        seed=0,
    ),
    Planted(
        rule="row 8",
        removed="apply is total: it raises once",
        caught_by="KeyError",
        plant=row_8,
        seed=4,
    ),
    Planted(
        rule="row 10",
        removed="asking before an election",
        caught_by="came back",
        plant=row_10,
        seed=2,
    ),
    Planted(
        rule="row 11",
        removed="a leader without a majority steps down",
        caught_by="still leads",
        plant=row_11,
        seed=3,
    ),
    Planted(
        rule="row 12",
        removed="sending entries when they are appended",
        caught_by="has not agreed",
        plant=row_12,
        seed=1,
    ),
    Planted(
        rule="row 14",
        removed="a commit index counts only with the term of its entry",
        caught_by=DIVERGED,
        plant=row_14,
        base=commits_are_told_to_all,
        seed=102,
    ),
    Planted(
        rule="row 15",
        removed="the applied index is durable with the rows",
        caught_by="before its restart|applied twice",
        plant=row_15,
        seed=0,
    ),
    *(
        Planted(
            rule=f"durable first: {what}",
            removed=f"{what} waits for the commit",
            caught_by=caught_by,
            plant=haste,
            seed=seed,
            nodes=nodes,
            world=hasty(*kinds, answers=answers),
            weights=TORN,
            hazards=("torn_commit",),
        )
        for what, kinds, answers, nodes, seed, caught_by in [
            ("a vote", (Vote,), False, 3, 51, "two leaders|second_leader"),
            ("an acknowledgement of entries", (NextIndex,), False, 3, 29, DIVERGED),
            ("an answer, and alone a commitment", (), True, 1, 0, "lost"),
        ]
    ),
    Planted(
        rule="read: leadership",
        removed="a leader asks a majority whether it still leads",
        caught_by="acknowledged before it",
        plant=believe_to_lead,
        seed=8,
        weights=("partition", "pause"),
        every_s=0.5,
    ),
    Planted(
        rule="read: own term",
        removed="a leader has committed an entry of its own term",
        caught_by="acknowledged before it",
        plant=read_before_an_own_commit,
        seed=1,
    ),
]
