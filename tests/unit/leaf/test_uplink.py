"""What a Leaf takes from its parent, and from nobody else."""

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.parents import Candidates
from node.executor.work import BranchInput, Work
from node.leaf.uplink import Uplink
from node.uplinks import messages
from node.uplinks.errors import UplinkError
from node.uplinks.messages import Assigned, Attached, Told
from storage.ids import NodeId, SessionId

FIRST, SECOND = NodeId("a" * 26), NodeId("b" * 26)


class Links:
    """To parents that take every Leaf."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def serve(self, method: str, server: object) -> None: ...

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        return messages.encode(Attached(told=Told(parent=peer, name=peer[:4], tier="core")))

    def hello_of(self, peer: NodeId) -> None: ...

    def address_of(self, peer: NodeId) -> str:
        return ""

    def is_up(self, peer: NodeId) -> bool:
        return True


def part(index: int, *, is_last: bool) -> bytes:
    work = Work(
        session_id=SessionId("2df18a12-f01b-4fb3-91b1-b52a88d742cf"), branch_index=9, attempt=1, ritual="echo",
        task="x", parameters={}, seed=1, timeout_ms=1, inputs=[],
    )  # fmt: skip
    given = BranchInput(
        branch_index=index, task="t", ritual="echo", ritual_version="1", node_id="n", attempt=1, status="completed",
        duration_ms=1,
    )  # fmt: skip
    return messages.encode([Assigned(work=work, inputs=[given], is_last=is_last)])


def test_inputs_that_a_former_parent_did_not_send_whole_count_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        got: list[Work] = []
        uplink = Uplink(
            "leaf-1", cast(Any, Links(tmp_path)), Candidates([]), cast(Any, SimpleNamespace()), cast(Any, None),
            cast(Any, SimpleNamespace()), random.Random(1),
        )  # fmt: skip
        uplink.executor = cast(Any, SimpleNamespace(submit=got.append))
        assert await uplink._attach(FIRST)
        await uplink._on_work(FIRST, part(0, is_last=False))
        assert await uplink._attach(SECOND)
        with pytest.raises(UplinkError):
            await uplink._on_work(FIRST, part(1, is_last=True))
        await uplink._on_work(SECOND, part(0, is_last=False))
        await uplink._on_work(SECOND, part(1, is_last=True))
        assert [[one.branch_index for one in work.inputs or ()] for work in got] == [[0, 1]]

    asyncio.run(main())
