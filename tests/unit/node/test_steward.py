"""The shell of autopilot: what a leader does by itself, and what it tells of it."""

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from consensus.autopilot import Policy
from consensus.changes import ChangeRefused
from consensus.driver import unknown_status
from consensus.engine import Role
from consensus.membership import Change, Configuration
from consensus.steps import ReplicaStatus
from node.steward import Steward
from storage.transactions import Transaction
from tests.unit.state.model import A, B, C, Replica, register, set_status

VOTERS = (A, B, C)


class Leading:
    """A group that leads three voters, of which `b` has left."""

    def __init__(self) -> None:
        self._replica = Replica(register(A), register(B), set_status(B, "left"))

    def status(self) -> ReplicaStatus:
        unknown = unknown_status(A, VOTERS)
        return msgspec.structs.replace(unknown, role=Role.LEADER, configuration=Configuration(VOTERS))

    def read(self) -> AbstractContextManager[Transaction]:
        return self._replica.store.read()


class Refusing:
    """Changes that are refused until they are not."""

    def __init__(self) -> None:
        self.asked = 0
        self.refuses = True

    async def ask(self, changes: Sequence[Change], **options: Any) -> None:
        self.asked += 1
        if self.refuses:
            raise ChangeRefused("quorum_lost", "too few would be left")


def test_what_is_refused_at_every_look_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.steward.LOOK_S", 0.001)

    async def scenario() -> None:
        changes = Refusing()
        group: Any = Leading()
        steward = Steward(A, group, changes, list, list, Policy())  # type: ignore[arg-type]
        with capture_logs() as logs:
            task = asyncio.create_task(steward.run())
            while changes.asked < 5:
                await asyncio.sleep(0.001)
            assert [(one.kind, one.node_id, one.outcome) for one in steward.actions] == [
                ("leave", B, "too few would be left")
            ]
            changes.refuses = False
            while steward.actions[-1].outcome != "done":
                await asyncio.sleep(0.001)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        told = [line["outcome"] for line in logs if line["event"] == "autopilot"]
        assert told[:2] == ["too few would be left", "done"]

    asyncio.run(asyncio.wait_for(scenario(), 20))
