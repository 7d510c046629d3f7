"""Two daemons on one identity that were linked to different nodes first, over real loopback sockets."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from mesh.identity import Identity
from mesh.links.book import KnownPeer, encode_peers
from mesh.links.frames import Kind, pack, pack_id, unpack_call
from mesh.mesh import Mesh
from storage.ids import InstanceId
from tests.unit.mesh.support import address, claims, encoded, linked, read_frame, run, site, stranger, until

LESSER, GREATER = InstanceId("0" * 16), InstanceId("f" * 16)


def seen_by(mesh: Mesh, other: Mesh) -> InstanceId | None:
    hello = mesh.hello_of(other.node_id)
    return None if hello is None else hello.instance_id


@pytest.mark.parametrize("order", [(LESSER, GREATER), (GREATER, LESSER)], ids=["lesser first", "greater first"])
def test_nodes_that_meet_agree_on_one_of_two(order: tuple[InstanceId, InstanceId], tmp_path: Path) -> None:
    async def scenario(directory: Path) -> None:
        async with site(directory) as here:
            a, c = await here.start("a"), await here.start("c")
            one = await here.start("one", data="b", seeds=[address(a)], instance_id=order[0])
            other = await here.start("other", data="b", seeds=[address(c)], instance_id=order[1])
            await linked(a, one)
            await linked(c, other)
            assert seen_by(a, one) != seen_by(c, other)
            a.add_seed(address(c))
            await until(lambda: seen_by(a, one) == seen_by(c, other) == GREATER, "both are linked to the greater one")
            lesser = one if one.instance_id == LESSER else other
            await until(lambda: not lesser.peers() or not any(peer.state == "up" for peer in lesser.peers()))
            refusals = here.logs["one" if lesser is one else "other"].refusals("cloned_identity")
            assert refusals, "it is told"

    asyncio.run(scenario(tmp_path))


Answer = Callable[[Identity, bytes], bytes]


def forged(liar: Identity, question: bytes) -> bytes:
    """Signed by somebody else."""
    _, nonce = msgspec.msgpack.decode(question)
    return msgspec.msgpack.encode((GREATER, liar.sign(b"meshnode instance\0" + nonce + GREATER.encode())))


@pytest.mark.parametrize(
    "answer",
    [forged, lambda liar, question: b"", lambda liar, question: question],
    ids=["forged", "empty", "nonsense"],
)
def test_a_lie_about_another_instance_ends_no_link(answer: Answer, tmp_path: Path) -> None:
    async def scenario(directory: Path) -> None:
        async with site(directory) as here:
            a = await here.start("a")
            b = await here.start("b", seeds=[address(a)], instance_id=LESSER)
            await linked(a, b)
            liar = Identity.generate()
            async with stranger(directory, a, liar) as (reader, writer, node_id):
                writer.write(pack(Kind.HELLO, encoded(claims(node_id))))
                await until(partial(a.is_up, node_id))
                writer.write(pack(Kind.PEERS, encode_peers([KnownPeer(b.node_id, (), "b", GREATER)])))
                kind, body = await read_frame(reader)
                while kind is not Kind.REQUEST:
                    kind, body = await read_frame(reader)
                request_id, method, question = unpack_call(body)
                assert method == "mesh.instance_of"
                writer.write(pack_id(Kind.RESPONSE, request_id, answer(liar, question)))
                await until(lambda: not a._manager.copies._looked_at, "it has judged")
            assert seen_by(a, b) == LESSER
            assert not a.counters().get("cloned_identity")

    asyncio.run(scenario(tmp_path))


@run
async def test_a_link_to_a_former_start_is_let_go_for_the_present_one(directory: Path) -> None:
    """The machine lost its power: one node has not noticed yet, another is linked to the next start already."""
    async with site(directory) as here:
        a, c = await here.start("a"), await here.start("c")
        identity = Identity.load_or_create(directory / "b" / "identity")
        async with stranger(directory, a, identity) as (_, writer, node_id):
            writer.write(pack(Kind.HELLO, encoded(claims(node_id))))
            await until(partial(a.is_up, node_id))
            b = await here.start("b", seeds=[address(c)], instance_id=GREATER)
            await linked(b, c)
            a.add_seed(address(c))
            await until(lambda: seen_by(a, b) == GREATER)
        assert not a.counters().get("cloned_identity")
