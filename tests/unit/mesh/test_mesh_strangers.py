"""Who is not let into a mesh over real loopback sockets, and why: wrong secrets and names, clones, garbage, crowds."""

import asyncio
import contextlib
import struct
from pathlib import Path

import pytest

from mesh import limits
from mesh.errors import BindError
from mesh.identity import Identity
from mesh.links import manager
from mesh.links.frames import Kind, pack, pack_call, pack_id, pack_notice, unpack_call
from mesh.proposals import Announce, FoundingRecord, encode_message
from mesh.secrets import MeshSecret
from storage.ids import MeshId, NodeId
from tests.unit.mesh.support import (
    address,
    claims,
    close,
    encoded,
    linked,
    read_frame,
    run,
    site,
    stranger,
    until,
)


@run
async def test_a_wrong_secret_is_named_on_both_sides_once(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        b = await here.start("b", secret=MeshSecret.new(), seeds=[address(a), f"localhost:{a.port}"])
        await until(lambda: a.counters().get("wrong_secret", 0) >= 2 and b.counters().get("wrong_secret", 0) >= 2)
        assert len(here.logs["a"].refusals("wrong_secret")) == 1
        assert "different mesh secrets" in here.logs["a"].refusals("wrong_secret")[0]["detail"]
        assert len(here.logs["b"].refusals("wrong_secret")) == 2  # once for each address dialled
        assert "secret" in b.seed_errors()[address(a)]
        assert not a.peers()


@run
async def test_another_mesh_name_is_refused_on_both_sides(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        b = await here.start("b", mesh_name="other", seeds=[address(a)])
        await until(lambda: a.counters().get("other_mesh_name") and b.counters().get("other_mesh_name"))
        for name in "ab":
            (refusal,) = here.logs[name].refusals("other_mesh_name")
            assert "'other'" in refusal["detail"]
            assert "'test'" in refusal["detail"]


@run
async def test_another_protocol_version_is_refused(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        async with stranger(directory, a) as (reader, writer, node_id):
            hello = {**claims(node_id), "protocol_min": 7, "protocol_max": 9, "of the future": 1}
            writer.write(pack(Kind.HELLO, encoded(hello)))
            kind, body = await read_frame(reader)
            assert kind == Kind.REFUSE
            assert b"protocol_version" in body
        await until(lambda: a.counters().get("protocol_version"))


@run
async def test_a_peer_may_not_claim_another_id(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        async with stranger(directory, a) as (reader, writer, _):
            writer.write(pack(Kind.HELLO, encoded(claims(NodeId("somebody-else")))))
            kind, body = await read_frame(reader)
            assert kind == Kind.REFUSE
            assert b"presented the key" in body
        assert a.counters()["garbage"] == 1


@run
async def test_a_clone_of_a_linked_node_is_refused_while_the_original_answers(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        b = await here.start("b", seeds=[address(a)])
        await linked(a, b)
        clone = await here.start("clone", data="b", seeds=[address(a)])
        await until(lambda: a.counters().get("cloned_identity") and clone.counters().get("cloned_identity"))
        assert a.hello_of(b.node_id).instance_id == b.instance_id  # type: ignore[union-attr]
        assert "copy of its data directory" in here.logs["clone"].refusals("cloned_identity")[0]["detail"]


@run
async def test_who_hangs_up_while_its_former_link_is_asked_is_not_linked(directory: Path) -> None:
    """A machine that lost its power, came back, and lost it again."""
    async with site(directory) as here:
        a = await here.start("a")
        identity = Identity.generate()
        async with stranger(directory, a, identity) as (_, writer, node_id):
            writer.write(pack(Kind.HELLO, encoded(claims(node_id))))
            await until(lambda: a.is_up(node_id))
            former = a._manager.links[node_id]
            again = claims(node_id) | {"instance_id": "8899aabbccddeeff"}
            async with stranger(directory, a, identity) as (_, second, _):
                second.write(pack(Kind.HELLO, encoded(again)))
                await until(lambda: former._pong_waiters, "the former link is asked")
            await until(lambda: former.closed.done() and not a.is_up(node_id))


@run
async def test_a_node_that_meets_its_own_clone_says_so(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        clone = await here.start("clone", data="a", seeds=[address(a)])
        await until(lambda: a.counters().get("cloned_identity") and clone.counters().get("cloned_identity"))


@run
async def test_two_meshes_founded_apart_refuse_each_other(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a", bootstrap_expect=1)
        b = await here.start("b", bootstrap_expect=1)
        await asyncio.gather(a.founded(), b.founded())
        b.add_seed(address(a))
        await until(lambda: a.counters().get("other_mesh_id") and b.counters().get("other_mesh_id"))
        assert not a.is_up(b.node_id)


@run
async def test_garbage_and_port_scans_do_not_disturb(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 64, b"\x16\x03\x01\xff\xff" + b"x" * 4000):
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
            writer.write(junk)
            if not junk:
                writer.close()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            await close(writer)
        await until(lambda: a.counters().get("garbage") == 3 and a.counters().get("hung_up") == 1, str(a.counters()))
        assert len(here.logs["a"].refusals("garbage")) == 1  # one line for one address and reason
        b = await here.start("b", seeds=[address(a)])
        await linked(a, b)


@run
async def test_an_oversized_hello_is_refused(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        async with stranger(directory, a) as (reader, writer, _):
            writer.write(struct.pack("!IB", limits.HANDSHAKE_FRAME_BYTES_MAX + 1, Kind.HELLO))
            kind, body = await read_frame(reader)
            assert (kind, b"oversized_frame" in body) == (Kind.REFUSE, True)
        await until(lambda: a.counters().get("oversized_frame") == 1)


@run
async def test_an_oversized_frame_closes_a_link_and_is_counted(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        async with stranger(directory, a) as (reader, writer, node_id):
            writer.write(pack(Kind.HELLO, encoded(claims(node_id))))
            kind, _ = await read_frame(reader)
            assert kind == Kind.WELCOME
            await until(lambda: a.is_up(node_id))
            writer.write(struct.pack("!IB", limits.FRAME_BYTES_MAX + 1, Kind.RAFT))
            await until(lambda: not a.is_up(node_id))
        assert a.counters()["oversized_frame"] == 1


@run
async def test_one_peer_makes_us_hold_no_more_than_the_cap(directory: Path) -> None:
    mebibyte = 1024 * 1024
    requests = limits.REQUESTS_SERVED_BYTES_MAX // mebibyte + 4

    async def never(peer: NodeId, payload: bytes) -> bytes:
        return await asyncio.Future()

    async with site(directory) as here:
        a = await here.start("a")
        a.serve("never", never)
        async with stranger(directory, a) as (reader, writer, node_id):
            writer.write(pack(Kind.HELLO, encoded(claims(node_id))))
            assert (await read_frame(reader))[0] == Kind.WELCOME
            for number in range(requests):
                writer.write(pack_call(Kind.REQUEST, number, b"never", b"x" * mebibyte))
                await writer.drain()
            refused: list[tuple[int, str]] = []
            while len(refused) < 4:
                kind, body = await read_frame(reader)
                if kind == Kind.FAILURE:
                    refused.append(unpack_call(body)[:2])
            assert refused == [(number, "busy") for number in range(requests - 4, requests)]
            assert a.peers()[0].counters["requests_serving"] == requests - 4
            for number in range(requests - 4):
                writer.write(pack_id(Kind.CANCEL, number, b""))
            await until(lambda: a.peers()[0].counters["requests_serving"] == 0)
            writer.write(pack_call(Kind.REQUEST, requests, b"never", b"x" * mebibyte))
            await until(lambda: a.peers()[0].counters["requests_serving"] == 1)


@run
async def test_what_a_peer_says_of_itself_again_and_of_a_founding_is_bounded(directory: Path) -> None:
    long = "x" * limits.HANDSHAKE_FRAME_BYTES_MAX
    async with site(directory) as here:
        a = await here.start("a")
        async with stranger(directory, a) as (reader, writer, node_id):
            writer.write(pack(Kind.HELLO, encoded(claims(node_id))))
            assert (await read_frame(reader))[0] == Kind.WELCOME
            record = FoundingRecord("founded", MeshId(long), (node_id,), node_id, 0, number=1, floor=1)
            writer.write(pack(Kind.FOUNDING, encode_message(Announce("core", 1, record))))
            writer.write(pack_notice(b"mesh.hello", encoded(claims(node_id) | {"http_address": long})))
            writer.write(pack_notice(b"mesh.hello", encoded(claims(node_id) | {"http_address": "short"})))
            await until(lambda: a.peers() and a.peers()[0].http_address)
            assert a.peers()[0].http_address == "short"
            assert a.mesh_id is None
        b = await here.start("b", seeds=[address(a)])
        await linked(a, b)


def test_a_slow_loris_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "HANDSHAKE_TIMEOUT_S", 0.1)

    async def scenario() -> None:
        async with site(tmp_path) as here:
            a = await here.start("a")
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
            writer.write(b"\x16\x03\x01")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            await close(writer)
            assert a.counters()["slow_loris"] == 1
            async with stranger(tmp_path, a) as (reader, writer, _):  # TLS done, no hello
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            assert a.counters()["slow_loris"] == 2

    asyncio.run(scenario())


@run
async def test_too_many_at_the_door_are_turned_away_and_members_still_get_in(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        writers = []
        for _ in range(limits.HANDSHAKES_PENDING_PER_ADDRESS_MAX + 3):
            _, writer = await asyncio.open_connection("127.0.0.1", a.port)
            writers.append(writer)
        await until(lambda: a.counters().get("too_many_handshakes") == 3)
        for writer in writers:
            await close(writer)
        b = await here.start("b", seeds=[address(a)])
        await linked(a, b)


def test_who_takes_all_places_at_the_door_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "HANDSHAKE_TIMEOUT_S", 1000.0)
    each, total = limits.HANDSHAKES_PENDING_PER_ADDRESS_MAX, limits.HANDSHAKES_PENDING_MAX

    async def scenario() -> None:
        async with site(tmp_path) as here:
            a = await here.start("a")
            writers = []
            for number in range(total):
                source = (f"127.0.1.{1 + number // each}", 0)
                _, writer = await asyncio.open_connection("127.0.0.1", a.port, local_addr=source)
                writers.append(writer)
            b = await here.start("b", seeds=[address(a)])
            await linked(a, b)
            assert a.counters()["too_many_handshakes"] == 1
            for writer in writers:
                await close(writer)

    asyncio.run(scenario())


@run
async def test_without_a_secret_only_loopback_is_bound(directory: Path) -> None:
    async with site(directory) as here:
        for host in ("auto", "0.0.0.0", "::"):
            with pytest.raises(BindError, match="meshnode secret new") as raised:
                await here.start("open", secret=None, bind_host=host)
            assert raised.value.code == "secret_required"
        a = await here.start("a", secret=None)
        b = await here.start("b", secret=None, seeds=[address(a)])
        await linked(a, b)
        c = await here.start("c", seeds=[address(a)])
        await until(lambda: a.counters().get("wrong_secret") and c.counters().get("wrong_secret"))
