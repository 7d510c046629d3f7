"""Meshes over real loopback sockets: linking, founding, requests, priorities, lost peers, restarts, a clean stop."""

import asyncio
import errno
import random
from pathlib import Path

import pytest

from mesh import limits, liveness
from mesh.discovery.remembered import save_peers
from mesh.errors import BindError, PeerUnavailable, RemoteFailed, RequestTimedOut
from mesh.links import heartbeat
from mesh.links.book import KnownPeer
from mesh.links.frames import Kind, pack
from mesh.mesh import Mesh
from storage.ids import NodeId
from tests.unit.mesh.support import address, claims, encoded, linked, run, site, stranger, until


@run
async def test_two_nodes_link_and_exchange(directory: Path) -> None:
    async with site(directory) as here:
        a = here.make("a")
        got: list[object] = []
        a.on_raft = lambda peer, payload: got.append(("raft", peer, payload))
        a.on_notice = lambda peer, topic, payload: got.append(("notice", peer, topic, payload))
        here._running.append(a)
        await a.start()
        b = await here.start("b", seeds=[address(a)], http_address="127.0.0.1:7780")
        await linked(a, b)
        assert b.send(a.node_id, b"entry")
        assert b.notify(a.node_id, "progress", b"half")
        await until(lambda: len(got) == 2)
        assert got == [("raft", b.node_id, b"entry"), ("notice", b.node_id, "progress", b"half")]
        (peer,) = a.peers()
        await until(lambda: a.peers()[0].rtt_ms is not None)
        assert (peer.node_id, peer.name, peer.state, peer.verdict) == (b.node_id, "b", "up", "alive")
        assert peer.http_address == "127.0.0.1:7780"
        assert not a.is_doubting()
        assert not a.send(NodeId("nobody"), b"")
        with pytest.raises(PeerUnavailable, match="no link"):
            await a.request(NodeId("nobody"), "echo", b"", 1.0)


@run
async def test_three_nodes_that_know_one_seed_become_full_and_found_together(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        assert a.founding_status == "not started" or "waiting for 2 more" in a.founding_status
        b = await here.start("b", seeds=[address(a)])
        c = await here.start("c", seeds=[address(a)])
        foundings = await asyncio.gather(a.founded(), b.founded(), c.founded())
        assert len({founding.mesh_id for founding in foundings}) == 1
        assert foundings[0].voters == tuple(sorted((a.node_id, b.node_id, c.node_id)))
        await linked(a, b, c)
        await until(lambda: all(store.record and store.record.state == "founded" for store in here.stores.values()))


@run
async def test_a_founded_node_without_anybody_still_knows_its_mesh(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        b = await here.start("b", seeds=[address(a)])
        c = await here.start("c", seeds=[address(a)])
        founding = await a.founded()
        await asyncio.gather(b.founded(), c.founded())
        for node in (a, b, c):
            await node.stop()
        again = await here.start("a")
        assert await again.founded() == founding
        assert founding.mesh_id in again.founding_status
        # The others come back at other addresses and are recognised; a fourth one joins, and is no voter.
        back = await here.start("b", seeds=[address(again)])
        fourth = await here.start("fourth", seeds=[address(again)])
        await linked(again, back, fourth)
        assert await fourth.founded() == founding
        assert "joined after its founding" in fourth.founding_status
        assert await back.founded() == founding


@run
async def test_three_nodes_find_each_other_by_multicast_on_loopback(directory: Path) -> None:
    async with site(directory) as here:
        nodes = [await here.start(name, zeroconf=True, interfaces=["127.0.0.1"]) for name in "abc"]
        other = await here.start("other", zeroconf=True, interfaces=["127.0.0.1"], mesh_name="elsewhere")
        foundings = await asyncio.gather(*(node.founded() for node in nodes))
        assert len({founding.mesh_id for founding in foundings}) == 1
        diary = nodes[0].diary()
        assert any(entry.event == "announced" and entry.interface == "lo" for entry in diary)
        await until(lambda: any("mesh of another name" in entry.detail for entry in other.diary()), "no diary entry")
        assert not other.counters()


@run
async def test_the_remembered_peers_are_dialled_without_seeds(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        b = await here.start("b", seeds=[address(a)])
        await linked(a, b)
        await b.stop()
        assert (directory / "b" / "peers").stat().st_mode & 0o077 == 0
        again = await here.start("b")
        await linked(a, again)
        assert any(entry.source == "remembered" for entry in again.diary())


def test_peers_are_remembered_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = 0
    is_full = True

    def save(data_dir: Path, peers: tuple[KnownPeer, ...]) -> None:
        nonlocal attempts
        attempts += 1
        if is_full:
            raise OSError(errno.ENOSPC, "no space left on device")
        save_peers(data_dir, peers)

    monkeypatch.setattr("mesh.mesh._PEERS_SAVED_EVERY_S", 0.02)
    monkeypatch.setattr("mesh.mesh.save_peers", save)

    async def scenario() -> None:
        nonlocal is_full
        async with site(tmp_path) as here:
            a = await here.start("a")
            b = await here.start("b", seeds=[address(a)])
            await linked(a, b)
            await until(lambda: attempts > 4, "it is not tried again")
            is_full = False
            await until((tmp_path / "b" / "peers").exists, "nothing is remembered")
            assert [event for _, event, _ in here.logs["b"].lines].count("peers_not_remembered") == 1

    asyncio.run(scenario())


@run
async def test_a_node_that_dials_itself_is_quiet(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        a.add_seed(address(a))
        await until(lambda: a.counters().get("self"))
        assert not here.logs["a"].refusals("self")


@run
async def test_a_restarted_node_replaces_its_old_link(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        b = await here.start("b", seeds=[address(a)])
        await linked(a, b)
        await b.stop()
        await until(lambda: not a.is_up(b.node_id))
        again = await here.start("b", seeds=[address(a)])
        await linked(a, again)
        assert a.hello_of(b.node_id).instance_id == again.instance_id  # type: ignore[union-attr]
        assert "cloned_identity" not in a.counters()


@run
async def test_a_port_in_use_is_named(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        with pytest.raises(BindError, match="in use") as raised:
            await here.start("b", port=a.port)
        assert raised.value.code == "port_in_use"


@run
async def test_requests_fail_with_a_reason(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        b = await here.start("b", seeds=[address(a)])
        cancelled = asyncio.Event()

        async def never(peer: NodeId, payload: bytes) -> bytes:
            try:
                return await asyncio.Future()
            finally:
                cancelled.set()

        async def refuse(peer: NodeId, payload: bytes) -> bytes:
            raise RemoteFailed("no_such_session", "there is no such session")

        async def double(peer: NodeId, payload: bytes) -> bytes:
            return payload * 2

        a.serve("never", never)
        a.serve("refuse", refuse)
        a.serve("double", double)
        await linked(a, b)
        assert await b.request(a.node_id, "double", b"ab", 5.0) == b"abab"
        assert len(await b.request(a.node_id, "double", b"x" * 1_000_000, 5.0)) == 2_000_000
        with pytest.raises(RemoteFailed) as failed:
            await b.request(a.node_id, "refuse", b"", 5.0)
        assert failed.value.code == "no_such_session"
        with pytest.raises(RemoteFailed) as failed:
            await b.request(a.node_id, "unknown", b"", 5.0)
        assert failed.value.code == "unknown_method"
        with pytest.raises(RequestTimedOut):
            await b.request(a.node_id, "never", b"", 0.01)
        await cancelled.wait()  # the time-out reached the other side
        with pytest.raises(RemoteFailed) as failed:
            await b.request(a.node_id, "double", b"x" * (limits.FRAME_BYTES_MAX // 2), 5.0)
        assert failed.value.code == "oversized_frame"
        waiting = asyncio.create_task(b.request(a.node_id, "never", b"", 30.0))
        await until(lambda: a.peers()[0].counters["requests_serving"] == 1)
        await a.stop()
        with pytest.raises(PeerUnavailable) as lost:
            await waiting
        assert lost.value.code == "link_lost"


@run
async def test_a_failing_server_is_reported_to_the_log_and_not_to_the_peer(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        b = await here.start("b", seeds=[address(a)])

        async def broken(peer: NodeId, payload: bytes) -> bytes:
            raise KeyError("our secret")

        a.serve("broken", broken)
        await linked(a, b)
        with pytest.raises(RemoteFailed) as failed:
            await b.request(a.node_id, "broken", b"", 5.0)
        assert failed.value.code == "internal"
        assert "our secret" not in str(failed.value)
        ((_, event, fields),) = here.logs["a"].errors()
        assert (event, fields["handler"]) == ("mesh_handler_failed", "broken")
        here.logs["a"].lines.clear()


@run
async def test_raft_frames_overtake_a_flood_of_notices(directory: Path) -> None:
    async with site(directory) as here:
        order: list[str] = []
        a = here.make("a")
        a.on_raft = lambda peer, payload: order.append("raft")
        a.on_notice = lambda peer, topic, payload: order.append("notice")
        here._running.append(a)
        await a.start()
        b = await here.start("b", seeds=[address(a)])
        await linked(a, b)
        accepted = sum(b.notify(a.node_id, "log", bytes(64 * 1024)) for _ in range(1000))
        assert b.send(a.node_id, b"vote")
        assert accepted < 1000, "a flood beyond the bound is shed"
        await until(lambda: len(order) == accepted + 1)
        # What the transport and the kernel already held goes first; the queue of eight megabytes does not.
        assert order.index("raft") < accepted / 2
        assert b.peers()[0].counters["notices_shed"] == 1000 - accepted


@run
async def test_crossing_dials_leave_one_link(directory: Path) -> None:
    async with site(directory) as here:
        ups: list[str] = []
        a, b = here.make("a"), here.make("b")
        a.on_link_up = lambda hello: ups.append("a")
        b.on_link_up = lambda hello: ups.append("b")
        for node in (a, b):
            here._running.append(node)
            await node.start()
        a.add_seed(address(b))
        b.add_seed(address(a))
        await linked(a, b)

        async def echo(peer: NodeId, payload: bytes) -> bytes:
            return payload

        a.serve("echo", echo)
        for _ in range(50):
            assert await b.request(a.node_id, "echo", b"x", 5.0) == b"x"
        assert sorted(ups) == ["a", "b"]
        directions = {node.peers()[0].is_dialled for node in (a, b)}
        await until(lambda: {node.peers()[0].is_dialled for node in (a, b)} == {True, False}, str(directions))


@run
async def test_losing_a_peer_is_noticed_at_once_and_told(directory: Path) -> None:
    async with site(directory) as here:
        downs: list[tuple[NodeId, str, bool]] = []
        a = here.make("a")
        a.on_link_down = lambda peer, reason, closed_by_peer: downs.append((peer, reason, closed_by_peer))
        here._running.append(a)
        await a.start()
        async with stranger(directory, a) as (_, writer, node_id):
            writer.write(pack(Kind.HELLO, encoded(claims(node_id))))
            await until(lambda: a.is_up(node_id))
            writer.transport.abort()
            await until(lambda: downs)
        assert downs == [(node_id, "closed_by_peer", True)]


def test_a_half_open_link_is_closed_for_its_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(liveness, "SUSPECT_S", 0.1)
    monkeypatch.setattr(liveness, "SILENCE_S", 0.2)

    async def scenario() -> None:
        async with site(tmp_path) as here:
            downs: list[tuple[NodeId, str, bool]] = []
            a = here.make("a")
            a.on_link_down = lambda peer, reason, closed_by_peer: downs.append((peer, reason, closed_by_peer))
            suspicions: list[tuple[NodeId, bool]] = []
            a.on_suspicion = lambda peer, is_suspect: suspicions.append((peer, is_suspect))
            here._running.append(a)
            await a.start()
            b = await here.start("b", seeds=[address(a)])
            await linked(a, b)
            async with stranger(tmp_path, a) as (_, writer, node_id):
                writer.write(pack(Kind.HELLO, encoded(claims(node_id))))
                await until(lambda: a.is_up(node_id))
                await until(lambda: downs)
            assert downs == [(node_id, "silent", False)]
            assert (node_id, True) in suspicions, "suspected first"
            assert a.is_up(b.node_id), "a peer that answers stays"

    asyncio.run(scenario())


def test_a_node_that_is_stalled_accuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(liveness, "SUSPECT_S", 0.05)
    monkeypatch.setattr(liveness, "SILENCE_S", 0.1)
    monkeypatch.setattr(liveness, "DOUBT_S", 0.2)

    async def scenario() -> None:
        async with site(tmp_path) as here:
            downs: list[str] = []
            changes: list[bool] = []
            is_stalled = True
            a = here.make("a")
            a.on_link_down = lambda peer, reason, closed_by_peer: downs.append(reason)
            a.on_doubt = lambda: changes.append(a.is_doubting())
            a.is_stalled = lambda: is_stalled
            here._running.append(a)
            await a.start()
            await until(lambda: changes == [True])
            async with stranger(tmp_path, a) as (_, writer, node_id):
                writer.write(pack(Kind.HELLO, encoded(claims(node_id))))
                await until(lambda: a.is_up(node_id))
                heard_s = max(peer.last_heard_age_s or 0.0 for peer in a.peers())
                await until(lambda: max(peer.last_heard_age_s or 0.0 for peer in a.peers()) > heard_s + 0.3)
                assert downs == []
                is_stalled = False
                await until(lambda: downs)
            assert (downs, changes) == (["silent"], [True, False])

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", [1, 4])
def test_restarts_and_broken_links_end_in_one_full_mesh(tmp_path: Path, seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        async with site(tmp_path) as here:
            nodes: dict[str, Mesh] = {}
            seeds: list[str] = []
            for name in "abcd":
                nodes[name] = await here.start(name, seeds=seeds)
                seeds = [*seeds, address(nodes[name])]
            for _ in range(30):
                name = rng.choice("abcd")
                if rng.random() < 0.5:
                    port = nodes[name].port
                    await nodes[name].stop()
                    nodes[name] = await here.start(name, port=port, seeds=seeds)
                else:
                    for link in list(nodes[name]._manager.links.values()):
                        link.abort("test")
            await linked(*nodes.values())

            def founded() -> list[str]:
                records = [store.record for store in here.stores.values()]
                return [record.mesh_id for record in records if record is not None and record.state == "founded"]

            await until(lambda: len(founded()) == 4)
            assert len(set(founded())) == 1
            for node in nodes.values():
                assert not set(node.counters()) - {"self", "duplicate", "hung_up", "stopping"}

    asyncio.run(scenario())
