"""Faults of what is kept on disk, and of what is unpickled."""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pysyncobj
import pysyncobj.pickle as wire_pickle
from pysyncobj.journal import FileJournal
from pysyncobj.serializer import Serializer

from tests.pysyncobj.peer import DEADLINE_S, PATIENT, Values, append


def a_torn_file_loses_the_vote() -> str:
    """6: the journal never syncs, and a torn meta file silently loses term and vote."""
    with tempfile.TemporaryDirectory() as name:
        path = str(Path(name) / "journal")
        journal = FileJournal(path)
        journal.setCurrentTerm(7, "b")
        meta = Path(path + ".meta")
        raw = meta.read_bytes()
        meta.write_bytes(raw[: len(raw) // 2])  # what a power cut may leave of a file that was never synced
        journal._destroy()
        again = FileJournal(path)
        seen = (again.getCurrentTerm(), again.getVotedForNodeId())
        again._destroy()
    assert seen == (0, None)
    sources = [path.read_text() for path in Path(pysyncobj.__file__).parent.glob("*.py")]
    assert not any("fsync" in text or "fdatasync" in text for text in sources)
    return "voted for b in term 7; after the restart it has voted for nobody in term 0; the library never calls fsync"


EXECUTED: list[str] = []


class Payload:
    """Whatever a peer wants to be called."""

    def __reduce__(self) -> Any:
        return (EXECUTED_BY_A_PEER, ("by a peer",))


def EXECUTED_BY_A_PEER(words: str) -> tuple[bytes, int, int]:
    EXECUTED.append(words)
    return (b"\x01", 2, 1)


def a_peer_s_message_executes_code() -> str:
    """7: entries larger than a batch, commands and membership are pickles from the wire."""
    follower = Values("bc", **PATIENT)
    raw = wire_pickle.dumps(Payload())
    for transmission, data in (("start", raw[:10]), ("finish", raw[10:])):
        message = append(1, (1, 0), [])
        del message["entries"]
        follower.script.tell("b", {**message, "transmission": transmission, "data": data})
    assert EXECUTED == ["by a peer"]
    return "an append message with a large entry calls what the sender names"


def a_crash_after_a_dump_loses_acknowledged_entries() -> str:
    """15: at restart a dump that does not match the head of the log clears the log."""
    with tempfile.TemporaryDirectory() as name:
        folder, crashed = Path(name), Path(name) / "crashed"
        crashed.mkdir()
        node = Values("", **alone_in(folder))
        acknowledged: list[str] = []

        def put(value: str) -> None:
            node.put(value, callback=lambda result, reason: is_acknowledged(value))

        def is_acknowledged(value: str) -> None:
            acknowledged.append(value)
            if len(acknowledged) == 7:
                for file in ("journal", "journal.meta", "dump"):
                    shutil.copy(folder / file, crashed / file)  # SIGKILL at this moment leaves the files like this

        for value in "abcd":
            put(value)
        node.tick_until(lambda: len(acknowledged) == 4)
        for value in "efg":
            put(value)
        node.forceLogCompaction()
        node.doTick()  # appends e, f, g; then a child writes the dump of a to d
        ends_at = time.monotonic() + DEADLINE_S
        while not (folder / "dump").exists():
            assert time.monotonic() < ends_at
            time.sleep(0.005)
        node.doTick()  # acknowledges e, f, g; only then it would look at the child and cut the log
        node.destroy()
        assert acknowledged == list("abcdefg")
        journal = FileJournal(str(crashed / "journal"))
        before = len(journal)
        journal._destroy()
        again = Values("", **alone_in(crashed))
        again.doTick()
        after, values = again.status("log_len"), again.values
        again.destroy()
    assert values == list("abcd")
    assert before == 9
    assert after == 2
    return f"acknowledged {acknowledged}, {before} entries in the journal; after the restart {after}, and {values}"


def alone_in(folder: Path) -> dict[str, Any]:
    """Settings of a mesh of one that keeps its files here."""
    return {
        "raftMinTimeout": 0.04, "raftMaxTimeout": 0.08, "appendEntriesPeriod": 0.01,
        "journalFile": str(folder / "journal"), "fullDumpFile": str(folder / "dump"),
    }  # fmt: skip


def two_transfers_can_be_spliced() -> str:
    """16: chunks of a snapshot have no identity: one that got lost is not missed."""
    with tempfile.TemporaryDirectory() as name:
        dump, received = Path(name) / "dump", Path(name) / "received"
        dump.write_bytes(b"".join(bytes([65 + number]) * 10 for number in range(4)))
        sender = Serializer(str(dump), 10, False, None, None, None)
        receiver = Serializer(str(received), 10, False, None, None, None)
        receiver.setTransmissionData(sender.getTransmissionData("b"))
        sender.getTransmissionData("b")  # lost with the connection, which is back before the next tick
        is_complete = False
        while not is_complete:
            chunk = sender.getTransmissionData("b")
            assert not chunk[1], "the transfer begins anew"
            is_complete = receiver.setTransmissionData(chunk)
        same = received.read_bytes() == dump.read_bytes()
        size = os.path.getsize(received)
    assert not same
    return f"a dump of 40 bytes is taken as complete with {size} of them"
