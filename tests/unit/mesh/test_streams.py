"""Streams beside links, over real loopback sockets: both ways, large and many frames, loss, and who gets none."""

import contextlib
from pathlib import Path

import pytest

from mesh import limits
from mesh.identity import Identity
from mesh.links import streams
from mesh.links.frames import Kind, pack
from mesh.links.stream import Stream
from mesh.mesh import Mesh
from storage.ids import NodeId
from tests.unit.mesh.support import address, claims, encoded, linked, read_frame, run, site, stranger, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STREAM_RETRY_S", 0.01)


class Owner:
    """Owns the streams of one mesh, as the replica's thread does."""

    def __init__(self, mesh: Mesh) -> None:
        self.streams: dict[NodeId, Stream] = {}
        self.given = 0
        mesh.start_streams(self._take)

    def _take(self, peer: NodeId, stream: Stream) -> None:
        self.given += 1
        old = self.streams.pop(peer, None)
        if old is not None:
            old.close()
        self.streams[peer] = stream

    def received(self, peer: NodeId) -> list[bytes]:
        return self.streams[peer].receive()

    def close(self) -> None:
        for stream in self.streams.values():
            stream.close()


def is_over(owner: Owner, peer: NodeId) -> bool:
    """Whether the stream has failed; then it is closed, as an owner does."""
    if peer in owner.streams:
        try:
            owner.received(peer)
        except OSError:
            owner.streams.pop(peer).close()
    return peer not in owner.streams


async def arrived(owner: Owner, peer: NodeId, count: int) -> list[bytes]:
    payloads: list[bytes] = []

    def more() -> bool:
        payloads.extend(owner.received(peer))
        return len(payloads) >= count

    await until(more)
    return payloads


@run
async def test_frames_go_both_ways_in_order(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        b = await here.start("b", seeds=[address(a)])
        await linked(a, b)
        at_a, at_b = Owner(a), Owner(b)
        with contextlib.closing(at_a), contextlib.closing(at_b):
            await until(lambda: at_a.streams and at_b.streams)
            sent = [b"%d" % number for number in range(200)]
            for payload in sent:
                assert at_a.streams[b.node_id].send(payload)
                assert at_b.streams[a.node_id].send(payload)
            assert await arrived(at_b, a.node_id, 200) == sent
            assert await arrived(at_a, b.node_id, 200) == sent
            assert at_a.received(b.node_id) == []
            assert b.peers()[0].counters["stream_frames_in"] == 200


@run
async def test_a_slow_reader_blocks_nobody_and_is_cut_short_at_the_cap(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        b = await here.start("b", seeds=[address(a)])
        at_a, at_b = Owner(a), Owner(b)
        with contextlib.closing(at_a), contextlib.closing(at_b):
            await until(lambda: at_a.streams and at_b.streams)
            stream = at_a.streams[b.node_id]
            sent = 0
            while stream.send(sent.to_bytes(4, "big") * 250_000):
                sent += 1
                assert sent < 100, "it never said that too much is waiting"
            assert stream.dropped == 1
            assert stream.wants_write
            payloads: list[bytes] = []

            def all_of_it() -> bool:
                stream.flush()
                payloads.extend(at_b.received(a.node_id))
                return len(payloads) == sent

            await until(all_of_it)
            assert [int.from_bytes(payload[:4], "big") for payload in payloads] == list(range(sent))
            assert all(len(payload) == 1_000_000 for payload in payloads)
            assert not stream.wants_write


@run
async def test_a_stream_that_is_lost_is_made_again(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        b = await here.start("b", seeds=[address(a)])
        at_a, at_b = Owner(a), Owner(b)
        with contextlib.closing(at_a), contextlib.closing(at_b):
            await until(lambda: at_a.streams and at_b.streams)
            at_a.streams[b.node_id].close()

            await until(lambda: is_over(at_b, a.node_id))
            await until(lambda: at_a.given == 2 and at_b.given == 2)
            at_b.streams[a.node_id].send(b"again")
            assert await arrived(at_a, b.node_id, 1) == [b"again"]


@run
async def test_no_stream_before_both_ends_want_one(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        b = await here.start("b", seeds=[address(a)])
        await linked(a, b)
        (dialled, accepted) = (a, b) if a.peers()[0].is_dialled else (b, a)
        early = Owner(dialled)
        with contextlib.closing(early):
            await until(lambda: accepted.counters().get("no_streams", 0) >= 3)
            assert not early.streams
            assert not here.logs["a"].refusals("no_streams")
            late = Owner(accepted)
            with contextlib.closing(late):
                await until(lambda: early.streams and late.streams)


@run
async def test_who_is_not_linked_gets_no_stream(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        with contextlib.closing(Owner(a)) as at_a:
            async with stranger(directory, a) as (reader, writer, _):
                writer.write(pack(Kind.STREAM, encoded({"instance_id": "0123456789abcdef"})))
                kind, body = await read_frame(reader)
                assert kind == Kind.REFUSE
                assert b"no_streams" in body
            async with stranger(directory, a) as (reader, writer, _):
                writer.write(pack(Kind.STREAM, b"\xff garbage"))
                assert (await read_frame(reader))[0] == Kind.REFUSE
            assert not at_a.streams


@run
async def test_a_stream_that_carries_anything_else_is_over(directory: Path) -> None:
    async with site(directory) as here:
        a = await here.start("a")
        with contextlib.closing(Owner(a)) as at_a:
            identity = Identity.generate()
            async with stranger(directory, a, identity) as (reader, writer, node_id):
                hello = claims(node_id)
                writer.write(pack(Kind.HELLO, encoded(hello)))
                assert (await read_frame(reader))[0] == Kind.WELCOME
                for garbage in (pack(Kind.PING, b"12345678"), b"\xff\xff\xff\xff\x06", b"\x00\x00\x00\x01\xee"):
                    async with stranger(directory, a, identity) as (stream_reader, stream_writer, _):
                        stream_writer.write(pack(Kind.STREAM, encoded({"instance_id": hello["instance_id"]})))
                        assert (await read_frame(stream_reader))[0] == Kind.STREAM
                        await until(lambda: node_id in at_a.streams)
                        stream_writer.write(pack(Kind.RAFT, b"good") + garbage)

                        await until(lambda: is_over(at_a, node_id))
            await until(lambda: not a.peers() or a.peers()[0].state != "up")


def test_the_cap_leaves_room_for_two_windows() -> None:
    assert limits.STREAM_UNSENT_BYTES_MAX >= 2 * 8 * 1024 * 1024
