"""A mesh that goes on for another one: nodes of the old one are told what to do, and probes see who runs."""

import asyncio
import socket
from pathlib import Path

import pytest

from mesh.handshake import Hello, judge
from mesh.identity import Identity
from mesh.probe import who_answers
from mesh.proposals import FORMER_MAX, Announce, decode_message, encode_message, succeed
from mesh.secrets import MeshSecret, Secrets
from mesh.trust import make_trust
from storage.ids import InstanceId, MeshId, NodeId

OLD = MeshId("old")


def hello(node_id: str, mesh_id: MeshId | None, former: tuple[MeshId, ...] = ()) -> Hello:
    return Hello(
        protocol_min=1,
        protocol_max=1,
        mesh_name="home",
        node_id=NodeId(node_id),
        instance_id=InstanceId(f"{node_id}1"),
        node_name=f"name-of-{node_id}",
        tier="core",
        mesh_id=mesh_id,
        former=former,
    )


def test_the_record_of_a_successor() -> None:
    own = NodeId("a")
    record = succeed(own, (OLD,), 3, 1_000)
    assert (record.state, record.voters, record.former) == ("founded", (own,), (OLD,))
    assert record.floor == record.number == 4
    assert record.mesh_id not in ("", OLD)
    assert succeed(own, (OLD,), 3, 2_000).mesh_id != record.mesh_id
    many = tuple(MeshId(str(number)) for number in range(FORMER_MAX + 5))
    assert succeed(own, many, 0, 1).former == many[-FORMER_MAX:]
    told = decode_message(encode_message(Announce("core", 3, record)))
    assert isinstance(told, Announce)
    assert told.record == record


@pytest.mark.parametrize("is_ours", [True, False])
def test_both_sides_say_which_mesh_was_given_up(is_ours: bool) -> None:
    new, old = hello("a", MeshId("new"), (MeshId("older"), OLD)), hello("b", OLD)
    ours, theirs = (new, old) if is_ours else (old, new)
    refusal = judge(ours, theirs, theirs.node_id)
    assert refusal is not None
    assert refusal.code == "superseded_mesh"
    assert "Stop 'name-of-b', move its data directory away" in refusal.message


def test_a_newcomer_is_welcome() -> None:
    assert judge(hello("a", MeshId("new"), (OLD,)), hello("b", None), NodeId("b")) is None


def test_a_probe_sees_who_answers_and_believes_only_the_secret(tmp_path: Path) -> None:
    secret = Secrets(MeshSecret.new())
    asking, there, stranger = (Identity.generate() for _ in range(3))

    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        servers = [
            await asyncio.start_server(silent, "127.0.0.1", 0, ssl=make_trust(who, theirs, "home", 0.0).server)
            for who, theirs in ((there, secret), (stranger, Secrets(MeshSecret.new())))
        ]
        servers.append(await asyncio.start_server(silent, "127.0.0.1", 0))
        addresses = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            asked = [*addresses, f"127.0.0.1:{nobody.getsockname()[1]}", "nonsense"]
            context = make_trust(asking, secret, "home", 0.0).client
            found = await asyncio.to_thread(who_answers, asked, context, 1.0)
        assert found == {there.node_id: addresses[0]}
        for server in servers:
            server.close()
            await server.wait_closed()

    asyncio.run(main())
