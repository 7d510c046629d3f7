"""What a Leaf takes from its parent, and from nobody else."""

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.errors import RemoteFailed
from mesh.limits import PARENT_PATIENCE_MAX_S, PARENT_RETRY_FIRST_S
from mesh.parents import Alternative, Candidates, Sample
from mesh.uplink import Answered
from node.executor.work import AttemptKey, BranchInput, Work
from node.leaf.multicast import Multicast
from node.leaf.outbox import Outbox
from node.leaf.uplink import Uplink
from node.uplinks import messages
from node.uplinks.errors import UplinkError
from node.uplinks.messages import Assigned, Attached, Register, Registered, Told
from storage.ids import NodeId, SessionId

FIRST, SECOND = NodeId("a" * 26), NodeId("b" * 26)
OFFER = Register(name="leaf-1", http_address="", slots=1, async_slots=1, rituals={}, software="0", at_ms=1)


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


class Parents(Links):
    """Two that take this Leaf; the second one's answer waits for `gate`. Both forget it when it registers, `forgets`
    times."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.up: set[NodeId] = set()
        self.gate = asyncio.Event()
        self.forgets = 0
        self.refuses = ""
        self.asked = 0
        self.attached: list[NodeId] = []
        self.on_link_down: Any = None
        self.on_notice: Any = None

    async def ask(self, addresses: tuple[str, ...], ping_s: float) -> Answered:
        peer = NodeId(addresses[0])
        self.up.add(peer)
        return Answered(Sample(peer, "core", 0.001, 0, 10))

    async def request(self, peer: NodeId, method: str, payload: bytes, timeout_s: float) -> bytes:
        if peer == SECOND and method == messages.ATTACH:
            await self.gate.wait()
        if method == messages.ATTACH:
            self.attached.append(peer)
        if method == messages.REGISTER:
            self.asked += 1
            if self.refuses:
                raise RemoteFailed(self.refuses, "start it again")
            if self.forgets:
                self.forgets -= 1
                raise RemoteFailed("not_attached", "attach first")
            return messages.encode(Registered())
        return await super().request(peer, method, payload, timeout_s)

    def is_up(self, peer: NodeId) -> bool:
        return peer in self.up

    def rtt_s(self, peer: NodeId) -> float:
        return 0.001

    def drop(self, peer: NodeId, code: str) -> None:
        if peer in self.up:
            self.up.discard(peer)
            self.on_link_down(peer, code)


def hanging(tmp_path: Path, links: Parents) -> Uplink:
    outbox = Outbox(tmp_path / "results", lambda content: b"", "home")
    uplink = Uplink(
        "leaf-1", cast(Any, links), Candidates([FIRST]), outbox, lambda running: OFFER,
        Multicast("home", "auto", is_wanted=False), random.Random(1),
    )  # fmt: skip
    uplink.executor = cast(Any, SimpleNamespace(running=list, warm=lambda: None))
    return uplink


async def registered(uplink: Uplink) -> None:
    while not uplink.is_registered:
        await asyncio.sleep(0.001)


def test_a_parent_that_is_lost_during_a_move_leaves_one_parent_not_two(tmp_path: Path) -> None:
    async def main() -> None:
        links = Parents(tmp_path)
        uplink = hanging(tmp_path, links)
        running = asyncio.create_task(uplink.run())
        await registered(uplink)
        uplink._on_notice(FIRST, messages.MOVE, messages.encode(Alternative(SECOND, "second", "core", (SECOND,))))
        while SECOND not in links.up:
            await asyncio.sleep(0.001)
        links.drop(FIRST, "silent")
        while uplink.is_registered:
            await asyncio.sleep(0.001)
        await registered(uplink)
        links.gate.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert links.up == {uplink.parent}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_parent_that_has_forgotten_this_leaf_is_left(tmp_path: Path) -> None:
    async def main() -> None:
        links = Parents(tmp_path)
        links.forgets = 1
        uplink = hanging(tmp_path, links)
        running = asyncio.create_task(uplink.run())
        await registered(uplink)
        assert links.attached == [FIRST, FIRST]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("code", ["has_left", "stale_instance"])
def test_an_instance_that_is_taken_no_more_stops_asking_and_working(tmp_path: Path, code: str) -> None:
    async def main() -> None:
        links = Parents(tmp_path)
        uplink = hanging(tmp_path, links)
        stopped: list[tuple[Any, ...]] = []
        key = AttemptKey(SessionId("2df18a12-f01b-4fb3-91b1-b52a88d742cf"), 0, 1)
        uplink.executor = cast(
            Any, SimpleNamespace(running=lambda: [key], cancel=lambda *one: stopped.append(one), warm=lambda: None)
        )
        running = asyncio.create_task(uplink.run())
        await registered(uplink)
        links.refuses = code
        uplink._on_notice(FIRST, messages.AGAIN, b"")
        while not uplink.refusal:
            await asyncio.sleep(0.001)
        assert (uplink.is_registered, links.asked, stopped) == (False, 2, [key])
        await asyncio.sleep(0)
        assert uplink.parent == FIRST, "its clients are answered"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), 20))


class Forming(Links):
    """Parents that answer and take nobody, as their mesh is not founded yet."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.asked: list[tuple[str, ...]] = []

    async def ask(self, addresses: tuple[str, ...], ping_s: float) -> Answered:
        self.asked.append(addresses)
        return Answered(Sample(NodeId(addresses[0]), "core", 0.001, taken=0, most=0))

    def drop(self, peer: NodeId, code: str) -> None: ...


def test_a_mesh_that_forms_is_asked_ever_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question is a handshake, and a hundred Leaf nodes keep a mesh from forming. News do not change that."""
    links = Forming(tmp_path)
    uplink = hanging(tmp_path, cast(Any, links))
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        uplink.hint(NodeId(f"{len(pauses):026d}"), (f"10.0.0.{len(pauses)}:1",))
        if len(pauses) == 12:
            raise InterruptedError

    monkeypatch.setattr(asyncio, "sleep", pause)
    with pytest.raises(InterruptedError):
        asyncio.run(uplink._find())
    assert len(links.asked) == 12
    assert pauses[0] <= PARENT_RETRY_FIRST_S
    assert min(pauses[6:]) >= PARENT_PATIENCE_MAX_S / 2
    assert max(pauses) <= PARENT_PATIENCE_MAX_S
