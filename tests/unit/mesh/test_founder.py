"""The shell of founding: it tells the machine who is being dialled, and wakes it when it asks for that."""

import asyncio

from mesh.bootstrap import Bootstrap
from mesh.founder import Founder
from mesh.proposals import Announce, FoundingRecord, Message, encode_message
from storage.ids import NodeId
from tests.unit.mesh.support import KeptLog, MemoryFounding, until


def test_it_says_who_is_being_dialled_and_goes_on_when_they_are_linked() -> None:
    async def scenario() -> None:
        unlinked = 2
        sent: list[tuple[NodeId, Message]] = []
        founded: list[FoundingRecord] = []
        store = MemoryFounding()
        machine = Bootstrap(NodeId("n0"), "core", 2, None, asyncio.get_running_loop().time())
        founder = Founder(
            machine,
            store,
            lambda peer, message: sent.append((peer, message)),
            founded.append,
            lambda: unlinked,
            KeptLog(),
        )
        task = asyncio.create_task(founder.run())
        founder.link_up(NodeId("n1"))
        founder.received(NodeId("n1"), encode_message(Announce("core", 2, None)))
        await until(lambda: "others that are being dialled" in founder.status)
        assert machine.wake_at is not None
        unlinked = 0
        await until(lambda: store.record is not None)
        assert store.record is not None
        assert store.record.voters == ("n0", "n1")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
