"""A mesh of one voter over any store, with sessions in it: something to back up, restore and recover."""

import random

from consensus.journal import TABLES as JOURNAL_TABLES
from consensus.limits import RaftSettings
from consensus.machine import DomainMachine
from consensus.replica import Replica
from consensus.state.commands import AnyCommand
from consensus.state.encoding import encode_command
from consensus.state.tables import TABLES as STATE_TABLES
from consensus.steps import Output, Propose
from storage.ids import NodeId
from storage.transactions import Store
from tests.unit.state.model import S1, S2, A, assign, assignment, register, submit

ALL_TABLES = (*JOURNAL_TABLES, *STATE_TABLES)


class Solo:
    def __init__(self, store: Store, node_id: NodeId = A) -> None:
        self.now = 1.0
        self._replica = Replica(node_id, [node_id], store, DomainMachine(), RaftSettings(), random.Random(1), self.now)
        self.output: Output = self.step()
        while not self.output.status.leader:
            self.output = self.step()

    def step(self, *inputs: Propose) -> Output:
        self.now += 1.0
        return self._replica.step(inputs, self.now)

    def propose(self, *commands: AnyCommand) -> Output:
        """Applied, one after the other."""
        for token, command in enumerate(commands):
            self.output = self.step(Propose(token, encode_command(command)))
            assert [one.error for one in self.output.resolved] == [None]
        return self.output


def with_sessions(store: Store) -> Output:
    """One session whose first branch is running, and one that waits."""
    return Solo(store).propose(register(A), submit(S1), assign(assignment(S1, 0)), submit(S2))
