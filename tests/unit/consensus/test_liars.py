"""A peer that is in the mesh but lies, or has gone mad: whatever it sends, nothing is raised, no pickle is touched,
what is committed stays."""

import random
from typing import Any

import msgspec
import pysyncobj.pickle
import pysyncobj.syncobj
import pytest

from consensus.limits import COMMAND_BYTES_MAX, FRAME_BYTES_MAX, TERM_JUMP_MAX, TERM_MAX
from consensus.messages import (
    AnyMessage,
    AppendEntries,
    Checkpoint,
    Commit,
    HigherTerm,
    NextIndex,
    PreVote,
    RequestPreVote,
    RequestVote,
    TimeoutNow,
    Vote,
    decode_frame,
    encode_frame,
)
from consensus.steps import PeerMessage
from storage.ids import NodeId
from tests.unit.consensus.cluster import IDS, Cluster

NO_TEXT = b"\x10\x94\x91\xa1\xff\x90\x90\x90"
"""A configuration with a voter whose id is no UTF-8."""


@pytest.fixture(autouse=True)
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a pickle was touched")

    for name in ("loads", "dumps", "load", "dump"):
        monkeypatch.setattr(pysyncobj.pickle, name, fail)
    monkeypatch.setattr(pysyncobj.syncobj, "pickle", pysyncobj.pickle)


def any_message(dice: random.Random, term: int, last: int) -> AnyMessage:
    """Near the truth, where lies are most dangerous."""

    def number(around: int, low: int = 0) -> int:
        return max(low, dice.choice([around, around + dice.randint(-3, 3), dice.randrange(100), 1 << 40, TERM_MAX]))

    sender_term = max(0, term + dice.choice([0, 0, 0, 1, -1, 5, TERM_JUMP_MAX + 1]))
    match dice.randrange(10):
        case 0 | 1 | 2:
            previous = number(last, 1)
            entries, entry_term = [], number(term)
            for position in range(dice.randrange(4)):
                raw = dice.choice([b"\x00x", b"\x01", b"\x02\x80", b"\x03\x80", b"", b"\x00", NO_TEXT])
                index = previous + 1 + position if dice.random() < 0.9 else number(last)
                entries.append((raw, min(index, TERM_MAX), min(entry_term, TERM_MAX)))
            return AppendEntries(sender_term, number(last), previous, number(term), entries)
        case 3:
            return NextIndex(sender_term, number(last, 1), dice.random() < 0.5, dice.random() < 0.5)
        case 4:
            return RequestVote(sender_term, number(last, 1), number(term))
        case 5:
            said: list[AnyMessage] = [Vote(sender_term), HigherTerm(sender_term), TimeoutNow(sender_term)]
            return dice.choice(said)
        case 6:
            return RequestPreVote(sender_term, number(term), number(last, 1), number(term))
        case 7:
            return PreVote(sender_term, number(term))
        case 8:
            return Commit(sender_term, number(last, 1), number(term))
        case _:
            return Checkpoint(sender_term, number(last, 1), b"lie")


@pytest.mark.parametrize("seed", range(60))
def test_nothing_a_liar_says_raises_or_uncommits(seed: int) -> None:
    dice = random.Random(seed)
    cluster = Cluster()
    leader = cluster.elect()
    for token in range(5):
        cluster.propose(leader, token, b"%d" % token)
    cluster.run()
    victim = dice.choice(IDS)
    before = cluster.replicas[victim].journal.entries(1, 8, bytes_max=1 << 20, count_max=100)
    for _ in range(200):
        status = cluster.replicas[victim].status
        liar = dice.choice([i for i in IDS if i != victim])
        cluster.inboxes[victim].append(
            PeerMessage(liar, encode_frame([any_message(dice, status.term, status.last_index)]))
        )
        cluster.now += dice.choice([0.0, 0.01, 0.4])
        cluster.step(victim)
        if dice.random() < 0.1:
            cluster.propose(victim, 1000 + dice.randrange(10**9), b"more")
    assert cluster.replicas[victim].journal.entries(1, 8, bytes_max=1 << 20, count_max=100) == before


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_dropped(seed: int) -> None:
    dice = random.Random(seed)
    cluster = Cluster()
    leader = cluster.elect()
    good = encode_frame([AppendEntries(1, 1, 1, 0, [(b"\x00abc", 2, 1)]), Commit(1, 1, 1)])
    for _ in range(500):
        frame = bytearray(good if dice.random() < 0.7 else dice.randbytes(dice.randrange(40)))
        for _flip in range(dice.randrange(3)):
            if frame:
                frame[dice.randrange(len(frame))] = dice.randrange(256)
        cluster.replicas[leader].step([PeerMessage(IDS[IDS.index(leader) - 1], bytes(frame))], cluster.now)


@pytest.mark.parametrize(
    "entries",
    [
        [(b"\x02\x80\x04K\x01.", 3, 1)],
        [(b"\x03\x80\x04K\x01.", 3, 1)],
        [(b"", 3, 1)],
        [(b"\x00x", 4, 1)],
        [(b"\x00x", 3, 2)],
        [(b"\x00x", 3, 1), (b"\x00x", 4, 0)],
        [(b"\x00" + b"x" * (COMMAND_BYTES_MAX + 1), 3, 1)],
    ],
    ids=["version", "membership", "empty", "gap", "term above", "term falls", "too long"],
)
def test_impossible_entries_never_enter_the_log(entries: list[tuple[bytes, int, int]]) -> None:
    """Row 7 among them: the engine would unpickle two kinds of entries."""
    cluster = Cluster()
    leader = cluster.elect()
    cluster.run()
    follower = next(i for i in IDS if i != leader)
    status = cluster.replicas[follower].status
    assert (status.term, status.last_index) == (1, 2)
    cluster.say(leader, follower, AppendEntries(1, 9, 2, 1, entries))
    assert cluster.replicas[follower].status.last_index == 2
    assert cluster.replicas[follower].status.dropped == {"malformed_entries": 1}


def test_a_jump_of_the_term_is_refused() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    cluster.say(IDS[IDS.index(leader) - 1], leader, HigherTerm(TERM_JUMP_MAX + 2))
    assert cluster.leader == leader


def test_what_a_newer_version_says_more_is_left_out() -> None:
    known: list[AnyMessage] = [Vote(7), NextIndex(7, 3, False, True)]
    frame = msgspec.msgpack.encode([*(msgspec.Raw(encode_frame([said])[1:]) for said in known), [100, 7, "new"]])
    assert decode_frame(frame) == known
    assert decode_frame(msgspec.msgpack.encode([[100]])) == []
    longer = msgspec.msgpack.encode([[4, 7, "a field that was appended"]])
    assert decode_frame(longer) == [Vote(7)]
    for malformed in ([[100], [4]], [[100], []], [[100], [-1, 7]], [[100], [[100]]], [[100], 100], [["100", 7]]):
        assert decode_frame(msgspec.msgpack.encode(malformed)) is None, malformed


def test_frames_are_capped() -> None:
    assert decode_frame(b"\x90" + b"x" * FRAME_BYTES_MAX) is None
    assert decode_frame(msgspec.msgpack.encode([[9, 1]] * 2000)) is None
    nested: Any = []
    for _ in range(2000):
        nested = [nested]
    assert decode_frame(b"\x91" * 5000 + b"\x90") is None


def test_strangers_are_not_heard() -> None:
    cluster = Cluster()
    leader = cluster.elect()
    assert cluster.say(NodeId("mallory"), leader, HigherTerm(99)) == []
    assert cluster.replicas[leader].status.term < 99
