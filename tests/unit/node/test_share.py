"""When a node is no parent; who hears of what was agreed."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from consensus.admission import quarantined
from consensus.errors import Unavailable
from consensus.state.rows import RitualOffer
from node import share as share_module
from node.app import Node
from node.live import LiveBoard
from node.scheduler.dispatcher import Dispatcher
from node.service.ports import NodeFacts
from node.share import RegistrationRefused, Share
from node.uplinks.parent import Parent
from node.work import Assignments
from storage.ids import InstanceId
from storage.memory import MemoryStore
from storage.space import Space
from tests.unit.consensus.test_group import ALL_TABLES
from tests.unit.http.twin import TwinGroup
from tests.unit.state.model import A, B, instance, register


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("", {}),
        ("disk_full", {"space": Space.FULL}),
        ("disk_hangs", {"is_stalled": True}),
        ("draining", {"drains": True}),
    ],
)
def test_a_node_that_could_do_nothing_for_a_leaf_takes_none(reason: str, fields: dict[str, Any]) -> None:
    group = SimpleNamespace(
        status=lambda: SimpleNamespace(is_quarantined=False, is_removed=False),
        is_stalled=lambda for_s: fields.get("is_stalled", False),
    )
    share = SimpleNamespace(
        group=group,
        has_left=lambda: False,
        is_draining=lambda: fields.get("drains", False),
        _disk=SimpleNamespace(space=fields.get("space", Space.LOW)),
        _lonely_since=None,
    )
    assert Share._takes_no_leaf(cast(Share, share)) == reason


def test_a_ritual_that_asks_for_patterns_gets_an_answer_from_a_damaged_replica() -> None:
    """Without one it would wait until its time is over."""

    def read() -> Any:
        raise quarantined()

    node = SimpleNamespace(group=SimpleNamespace(read=read))
    assert Node._lookup_patterns(cast(Node, node), ["p"]) == {}


def test_a_node_is_bound_by_the_limits_of_others_once_they_have_registered() -> None:
    """They may have another version of the ritual."""
    group = TwinGroup()
    rituals = {name: RitualOffer(version="1", kind="async") for name in ("echo", "own", "elsewhere")}

    def bound(unlimited: set[str]) -> bool:
        share = SimpleNamespace(group=group, _bound=None, _unlimited=unlimited)
        return Share._is_bound(cast(Share, share))

    group.apply(replace(register(A), rituals=rituals))
    assert not bound({"echo"})
    group.apply(replace(register(B), rituals=rituals, ritual_limits={"own": 1, "elsewhere": 2}))
    assert not bound({"echo"})
    assert bound({"echo", "own"})


@pytest.mark.parametrize("is_told", [True, False])
def test_a_node_ends_when_a_copy_of_it_has_registered(is_told: bool) -> None:
    group = TwinGroup()
    owned: list[str] = []

    def own(name: str, work: Coroutine[Any, Any, None]) -> None:
        owned.append(name)
        with pytest.raises(RegistrationRefused, match="one of the two data directories is a copy"):
            work.send(None)

    share = cast(Any, Share.__new__(Share))
    share.group, share._own = group, own
    share._node_id, share._instance_id = A, instance(A, 2)
    share._parents = {}
    share.parent = SimpleNamespace(leaves=list)
    share.dispatcher = SimpleNamespace(wake=lambda: None)
    share._assignments = SimpleNamespace(compare=lambda *_: None, start_leased=lambda *_: None)
    share._executor = None
    if is_told:
        group.subscribe_events(share._on_members)
    group.apply(register(A, 1))
    group.apply(register(A, 2))
    group.apply(register(B, 1))
    assert not owned
    group.apply(register(A, 3))
    if not is_told:
        share._on_installed(SimpleNamespace(installed_index=9))
    assert owned == ["end of a copy"]


@pytest.mark.parametrize("faulty", [LiveBoard, Assignments, Parent])
def test_who_fails_at_news_keeps_them_from_nobody_else(faulty: type, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[type] = []
    faults: list[dict[str, Any]] = []

    def hears(who: type) -> Any:
        def hear(self: object, *news: object) -> None:
            told.append(who)
            if who is faulty:
                raise ValueError("planted")

        return hear

    for who in (LiveBoard, Assignments, Parent):
        monkeypatch.setattr(who, "on_events", hears(who))
    monkeypatch.setattr(Dispatcher, "wake", hears(Dispatcher))

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, story: faults.append(story))
        mesh = SimpleNamespace(serve=lambda *given: None, request=None, hello_of=lambda peer: None)
        node = SimpleNamespace(
            node_id=A,
            facts=NodeFacts(
                node_id=A, instance_id=InstanceId("i"), name="a", tier="core", mesh_name="home", data_dir=""
            ),
            store=MemoryStore(ALL_TABLES),
            mesh=mesh,
            registry={},
            executor=None,
            live=LiveBoard(A, lambda topic, payload: None),
            disk=SimpleNamespace(space=Space.OK),
            workshop=None,
            lookout=SimpleNamespace(outlook=None, linked=lambda: (), turn_to=lambda leader: None),
            own=lambda name, work: None,
            on_replica_failure=lambda error, is_final: None,
        )
        share = Share(cast(Any, node), (A,))
        share.group.start()
        try:
            async with asyncio.timeout(30):
                while not share.group.status().leader:
                    await asyncio.sleep(0.01)
                told.clear()
                await share.group.propose(register())
                while not faults or Dispatcher not in told:
                    await asyncio.sleep(0.01)
        finally:
            await share.group.stop()

    asyncio.run(scenario())
    assert {LiveBoard, Assignments, Parent, Dispatcher} == set(told)
    assert {str(fault["exception"]) for fault in faults} == {"planted"}


def test_what_older_nodes_do_not_understand_is_said_when_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when one went without ever becoming a member, of which no event tells."""
    monkeypatch.setattr(share_module, "SAY_THE_REST_LOOK_S", 0)
    looks: Iterator[bool | Exception] = iter([True, Unavailable("quarantined", "not now"), True, False])
    said: list[object] = []

    def goes_too_far(txn: object, version: int) -> bool:
        look = next(looks)
        if isinstance(look, bool):
            return look
        raise look

    async def register(command: object) -> None:
        said.append(command)

    share = SimpleNamespace(
        _is_cut=True, _goes_too_far=goes_too_far, register=register, group=SimpleNamespace(read=contextlib.nullcontext)
    )
    asyncio.run(Share._say_the_rest(cast(Share, share), cast(Any, "all of it")))
    assert said == ["all of it"]
    assert next(looks, "none") == "none"
