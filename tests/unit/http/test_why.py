"""Where branches may execute, why they do not, and dry runs, over HTTP."""

from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from consensus.state.commands import AssignBranches, Assignment, RegisterMember
from consensus.state.rows import Condition, Placement, RitualOffer
from node.scheduler.judgement import LinkView, Outlook
from node.service import backlog
from node.service.backlog import Waits
from node.service.errors import ServiceError
from node.service.sight import Sights
from storage.ids import NodeId, SessionId
from tests.unit.http.test_submission import parse
from tests.unit.http.twin import INSTANCE, NODE, NOW_MS, TwinNode, body, run

Client = TestClient[Any, Any]


def test_what_a_session_says_counts_for_branches_that_do_not_say_it() -> None:
    document = body(
        branches=[
            {"ritual": "echo", "task": "a"},
            {"ritual": "echo", "task": "b", "require": {"gpu": ["a", "b"]}, "tier": "leaf", "node": "x"},
        ],
        require={"arch": {"not_in": ["arm"]}},
        prefer={"ssd": True, "slow": False},
        spread="rack",
        ritual_version=">=1, <2",
        priority=-2,
        concurrency=4,
    )
    command = parse(document)
    arm = Condition(label="arch", operator="not_in", values=["arm"])
    prefer = [Condition(label="ssd", operator="exists"), Condition(label="slow", operator="missing")]
    assert command.branches[0].placement == Placement(require=[arm], prefer=prefer, spread="rack", version=">=1, <2")
    gpu = Condition(label="gpu", operator="in", values=["a", "b"])
    leaf = Condition(label="tier", operator="in", values=["leaf"])
    assert command.branches[1].placement == Placement(
        require=[gpu, leaf], prefer=prefer, spread="rack", version=">=1, <2", node="x"
    )
    assert command.consolidation.placement is None, "that is another ritual: it says for itself"
    assert (command.priority, command.concurrency) == (-2, 4)
    assert parse(body()).branches[0].placement is None


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"require": "gpu"}, "require"),
        ({"require": {"gpu": 1}}, "require.gpu"),
        ({"require": {"gpu": {"like": ["a"]}}}, "require.gpu"),
        ({"require": {"gpu": [1]}}, "require.gpu"),
        ({"require": {"gpu": []}}, "require.gpu"),
        ({"require": {"": "a"}}, "require."),
        ({"prefer": {"gpu": {"in": {}}}}, "prefer.gpu.in"),
        ({"tier": "cloud"}, "tier"),
        ({"tier": [["core"]]}, "tier"),
        ({"node": ""}, "node"),
        ({"ritual_version": "~=1"}, "ritual_version"),
        ({"priority": 11}, "priority"),
        ({"priority": True}, "priority"),
        ({"concurrency": 0}, "concurrency"),
        ({"ritual_concurrency": 1}, "ritual_concurrency"),
        ({"ritual_concurrency": {"ecko": 1}}, "ritual_concurrency.ecko"),
        ({"ritual_concurrency": {"echo": 0}}, "ritual_concurrency.echo"),
    ],
)
def test_what_cannot_be_understood_is_refused_by_name(fields: dict[str, Any], at: str) -> None:
    with pytest.raises(ServiceError) as caught:
        parse(body(**fields))
    assert (caught.value.code, caught.value.values["at"]) == ("invalid_session", at)


async def submitted(client: Client, **fields: Any) -> str:
    answer = await client.post("/v1/sessions", json=body(2, **fields))
    assert answer.status == 201, await answer.text()
    return str((await answer.json())["session"]["id"])


async def asked(client: Client, identity: str) -> dict[str, Any]:
    answer = await client.get(f"/v1/branches/{identity}/why")
    assert answer.status == 200, await answer.text()
    document: dict[str, Any] = await answer.json()
    return document


def test_a_branch_says_what_rules_out_each_node_and_what_would_help() -> None:
    async def scenario(client: Client, node: TwinNode) -> None:
        identity = await submitted(client, require={"gpu": "a4000"})
        told = await asked(client, identity)
        assert told["sentence"] == ("Branch 0 waits: it fits on none of 1 nodes now; no node has the label gpu.")
        (candidate,) = told["candidates"]
        assert (candidate["name"], candidate["fits"], candidate["code"]) == ("alpha", False, "label_mismatch")
        assert told["unblock"] == ["start a node with gpu = a4000"]
        by_branch = await asked(client, told["branch"]["id"])
        assert by_branch["sentence"] == told["sentence"]

    run(scenario)


def test_a_branch_that_waits_for_its_turn_that_runs_and_that_has_ended() -> None:
    async def scenario(client: Client, node: TwinNode) -> None:
        identity = await submitted(client, concurrency=1)
        assert "waits for its turn" in (await asked(client, identity))["sentence"]
        node.assign(identity, 0)
        told = await asked(client, identity)
        assert (told["branch"]["branch_index"], told["waits"]["code"]) == (1, "session_limit")
        answer = await client.get(f"/v1/sessions/{identity}/branches/0")
        running = await asked(client, (await answer.json())["branch"]["id"])
        assert running["sentence"] == "Branch 0 executes on alpha in attempt 1."
        assert "lease" in running["next_deadline"]["what"]
        node.finish(identity, 0)
        node.assign(identity, 1)
        answer = await client.get(f"/v1/sessions/{identity}/branches/2")
        last = await asked(client, (await answer.json())["branch"]["id"])
        assert last["sentence"] == "The consolidation waits until the other branches have ended: 1 have not."
        node.finish(identity, 1, fails=True)
        assert "waits" in (await asked(client, identity))["sentence"]

    run(scenario)


def test_links_are_told_as_the_leader_sees_them() -> None:
    """Also by a node that sees others, or cannot ask."""
    leader = NodeId("b" * 26)
    suspect = LinkView(is_up=True, since_ms=1, instance_id=INSTANCE, is_suspect=True)
    theirs = Sights(leader, lambda: leader, lambda: Outlook({NODE: suspect}), list, unasked)

    async def scenario(client: Client, node: TwinNode) -> None:
        identity = await submitted(client)
        node.group.state.leader = leader
        for answer, seen_from, code in (
            (await theirs.on_request(NODE, b""), {"name": leader, "is_leader": True}, "no_link"),
            (None, {"name": "alpha", "is_leader": False}, None),
            (b"no sight", {"name": "alpha", "is_leader": False}, None),
        ):

            async def ask(peer: NodeId, answer: bytes | None = answer) -> bytes | None:
                return answer if peer == leader else None

            node.service.sights = Sights(NODE, lambda: leader, Outlook, list, ask)
            told = await asked(client, identity)
            assert (told["seen_from"], told["candidates"][0]["code"]) == (seen_from, code)
            assert code or "check the network of alpha" not in told["unblock"]

    run(scenario)


async def unasked(peer: NodeId) -> None:
    raise AssertionError("the leader asks nobody")


def test_of_two_attempts_at_the_same_time_both_are_told() -> None:
    async def scenario(client: Client, node: TwinNode) -> None:
        identity = SessionId(await submitted(client))
        node.assign(identity, 0)
        told = await asked(client, (await of_branch(client, identity, 0))["id"])
        assert told["next_deadline"]["what"] == "its lease ends, and it goes on elsewhere"
        echo = RitualOffer(version="1", kind="cpu")
        node.group.apply(
            RegisterMember(
                node_id=NodeId("c" * 26), instance_id=INSTANCE, name="gamma", tier="core", address="", http_address="",
                slots=1, async_slots=0, rituals={"echo": echo}, software="0", at_ms=NOW_MS,
            )
        )  # fmt: skip
        beside = Assignment(
            session_id=identity, branch_index=0, attempt=2, node_id=NodeId("c" * 26), instance_id=INSTANCE,
            deadline_ms=NOW_MS + 90_000,
        )  # fmt: skip
        node.group.apply(AssignBranches(assignments=[], speculative=[beside], at_ms=NOW_MS + 2))
        told = await asked(client, (await of_branch(client, identity, 0))["id"])
        assert told["sentence"] == (
            "Branch 0 executes on alpha in attempt 1, which is slow, and beside it on gamma in attempt 2."
        )
        assert told["next_deadline"]["what"] == "its lease ends, and attempt 2 goes on alone"

    run(scenario)


async def of_branch(client: Client, identity: str, index: int) -> dict[str, Any]:
    answer = await client.get(f"/v1/sessions/{identity}/branches/{index}")
    branch: dict[str, Any] = (await answer.json())["branch"]
    return branch


def test_without_a_leader_nothing_waits_for_its_turn() -> None:
    async def scenario(client: Client, node: TwinNode) -> None:
        identity = await submitted(client)
        node.group.state.leader = None
        told = await asked(client, identity)
        assert (told["waits"]["code"], len(told["unblock"])) == ("no_leader", 1)
        assert told["sentence"].startswith("Branch 0 waits: this node knows of no leader")

    run(scenario)


def test_only_what_holds_it_back_is_said_to_help() -> None:
    async def scenario(client: Client, node: TwinNode) -> None:
        identity = await submitted(client, require={"rack": {"not_in": ["9"]}, "name": ["beta"]})
        assert "no node has the label" not in (await asked(client, identity))["sentence"], "not_in asks for no label"
        node.group.apply(
            RegisterMember(
                node_id=NodeId("c" * 26), instance_id=INSTANCE, name="gamma", tier="core", address="", http_address="",
                slots=0, async_slots=0, rituals={}, software="0", at_ms=NOW_MS,
            )
        )  # fmt: skip
        full = await submitted(client, concurrency=1)
        node.assign(full, 0)
        assert (await asked(client, full))["unblock"] == ["wait for one of them"], "alpha has room"

    run(scenario)


def test_a_session_may_limit_one_of_its_rituals() -> None:
    async def scenario(client: Client, node: TwinNode) -> None:
        identity = await submitted(client, ritual_concurrency={"echo": 1})
        assert (await asked(client, identity))["waits"] is None
        node.assign(identity, 0)
        told = await asked(client, identity)
        assert told["waits"]["code"] == "session_ritual_limit"
        assert told["sentence"] == "Branch 1 waits: its session runs 1 branches of echo, its limit."
        node.finish(identity, 0)
        assert (await asked(client, identity))["waits"] is None
        answer = await client.post("/v1/sessions?dry_run=1", json=body(3, ritual_concurrency={"echo": 1}))
        assert [row["node_id"] for row in (await answer.json())["placements"]] == [NODE, None, None]

    run(scenario)


def test_an_unknown_id_is_no_branch() -> None:
    async def scenario(client: Client, node: TwinNode) -> None:
        answer = await client.get("/v1/branches/00000000-0000-0000-0000-000000000000/why")
        assert (answer.status, (await answer.json())["code"]) == (404, "unknown_branch")

    run(scenario)


def test_a_dry_run_submits_nothing_and_says_where_branches_would_go() -> None:
    async def scenario(client: Client, node: TwinNode) -> None:
        before = node.group.state.applied_index
        answer = await client.post("/v1/sessions?dry_run=1", json=body(3))
        told = await answer.json()
        assert answer.status == 200
        assert [row["node_id"] for row in told["placements"]] == [NODE, NODE, None]
        assert told["placements"][2]["ruled_out"][0]["code"] == "no_room"
        assert (told["placed"], told["total_branches"]) == (2, 3)
        assert node.group.state.applied_index == before
        answer = await client.post("/v1/sessions?dry_run=maybe", json=body(3))
        assert answer.status == 400

    run(scenario)


def test_a_dry_run_of_many_that_fit_nowhere_does_not_tell_of_every_node_each_time() -> None:
    async def scenario(client: Client, node: TwinNode) -> None:
        answer = await client.post("/v1/sessions?dry_run=1", json=body(100, require={"gpu": True}))
        told = (await answer.json())["placements"]
        assert [bool(row["ruled_out"]) for row in told] == [True] * 20 + [False] * 80

    run(scenario)


def test_the_status_tells_of_the_backlog() -> None:
    async def scenario(client: Client, node: TwinNode) -> None:
        low = await submitted(client, priority=-1)
        high = await submitted(client, priority=5)
        waits = Waits(node.group)
        node.group.subscribe_events(waits.on_events)
        node.service.waits = waits
        told = (await (await client.get("/status")).json())["backlog"]
        assert [row["id"] for row in told["sessions"]] == [high, low]
        assert (told["queued"], told["rituals"], told["rituals_counted"]) == (4, {"echo": 4}, 4)
        assert told["oldest_wait_s"] >= told["sessions"][0]["waits_s"] >= 0
        assert told["started"] == {"samples": 0, "p50_s": None, "p90_s": None, "p99_s": None}
        node.assign(low, 0)
        told = (await (await client.get("/status")).json())["backlog"]
        assert (told["queued"], told["started"]["samples"]) == (3, 1)

    run(scenario)


def test_waits_are_sampled_on_after_an_event_of_a_clock_that_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "SAMPLE_S", 0.0)

    async def scenario(client: Client, node: TwinNode) -> None:
        session = await submitted(client)
        waits = Waits(node.group)
        node.group.subscribe_events(waits.on_events)
        ahead = Assignment(
            session_id=SessionId(session), branch_index=0, attempt=1, node_id=NODE, instance_id=INSTANCE, deadline_ms=0
        )
        node.group.apply(AssignBranches(assignments=[ahead], at_ms=NOW_MS + 3_600_000))
        node.assign(session, 1)
        assert waits.document()["samples"] == 2

    run(scenario)


def test_the_backlog_is_bounded_whatever_is_queued() -> None:
    async def scenario(client: Client, node: TwinNode) -> None:
        for _ in range(25):
            answer = await client.post("/v1/sessions", json=body(40))
            assert answer.status == 201
        told = (await (await client.get("/status")).json())["backlog"]
        assert (told["queued"], len(told["sessions"]), told["rituals_counted"]) == (1000, 20, 500)

    run(scenario)
