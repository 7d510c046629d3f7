"""What the replica's thread hears and says: posted inputs, streams of peers, and the end of either."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from consensus.inbox import Inbox, Stop, StreamUp
from consensus.limits import INPUTS_PER_STEP_MAX
from consensus.steps import Input, LinkDown, LinkUp, PeerMessage, Propose, TransferLeadership
from storage.ids import NodeId
from tests.unit.consensus.pipes import PipeStream, close_pipes, pipe

PEER = NodeId("peer")
OTHER = NodeId("other")
FAR = 60.0


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    yield
    close_pipes()


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    made = Inbox()
    made.open()
    yield made
    made.close()


def take(inbox: Inbox) -> list[object]:
    given = inbox.take(time.monotonic() + FAR)
    assert given is not None
    return list(given)


def connected(inbox: Inbox, peer: NodeId = PEER) -> tuple[PipeStream, PipeStream]:
    ours, theirs = pipe()
    inbox.post(LinkUp(peer))
    inbox.post(StreamUp(peer, ours))
    assert take(inbox) == [LinkUp(peer), LinkUp(peer)]
    return ours, theirs


def test_what_is_posted_comes_in_order(inbox: Inbox) -> None:
    given: list[Input] = [LinkUp(PEER), Propose(1, b"x"), PeerMessage(PEER, b"m"), LinkDown(PEER, True)]
    given.append(TransferLeadership())
    for each in given:
        inbox.post(each)
    assert take(inbox) == given
    assert inbox.links == set()


def test_a_post_wakes_who_waits(inbox: Inbox) -> None:
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.extend(take(inbox)))
    thread.start()
    inbox.post(Propose(1, b"x"))
    thread.join(10)
    assert taken == [Propose(1, b"x")]


def test_nothing_comes_after_the_deadline(inbox: Inbox) -> None:
    assert inbox.take(time.monotonic() + 0.01) == []


def test_stop(inbox: Inbox) -> None:
    inbox.post(Propose(1, b"x"))
    inbox.post(Stop())
    assert inbox.take(time.monotonic()) is None


def test_one_step_takes_no_more_than_its_share(inbox: Inbox) -> None:
    for token in range(INPUTS_PER_STEP_MAX + 1):
        inbox.post(Propose(token, b""))
    assert len(take(inbox)) == INPUTS_PER_STEP_MAX
    assert len(take(inbox)) == 1


def test_messages_of_a_stream_come_beside_what_is_posted(inbox: Inbox) -> None:
    _, theirs = connected(inbox)
    theirs.send(b"one")
    theirs.send(b"two")
    assert take(inbox) == [PeerMessage(PEER, b"one"), PeerMessage(PEER, b"two")]
    inbox.post(Propose(1, b"x"))
    theirs.send(b"three")
    assert take(inbox) == [PeerMessage(PEER, b"three"), Propose(1, b"x")]


def test_frames_take_the_stream_where_there_is_one(inbox: Inbox) -> None:
    _, theirs = connected(inbox)
    frames = [(PEER, b"a"), (OTHER, b"b"), (PEER, b"c")]
    assert inbox.send(frames) == [(OTHER, b"b")]
    assert theirs.receive() == [b"a", b"c"]


def test_what_a_socket_does_not_take_goes_out_when_it_can(inbox: Inbox) -> None:
    ours, theirs = connected(inbox)
    ours.is_stuck = True
    assert inbox.send([(PEER, b"a")]) == []
    assert theirs.receive() == []
    ours.is_stuck = False
    assert inbox.take(time.monotonic() + FAR) == []
    assert theirs.receive() == [b"a"]
    assert inbox.take(time.monotonic() + 0.01) == []


@pytest.mark.parametrize("how", ["reading", "writing"])
def test_a_stream_that_is_over_means_the_link_begins_anew(inbox: Inbox, how: str) -> None:
    ours, theirs = connected(inbox)
    if how == "reading":
        theirs.close()
        inputs = take(inbox)
    else:
        ours.end.shutdown(socket.SHUT_WR)
        assert inbox.send([(PEER, b"a")]) == [(PEER, b"a")], "it is for the link now"
        inputs = []
    assert ours.is_closed
    inputs += [] if inputs else take(inbox)
    assert inputs == [LinkUp(PEER)]


def test_a_stream_that_is_over_with_its_link_does_not_bring_it_up(inbox: Inbox) -> None:
    ours, theirs = connected(inbox)
    theirs.close()
    inbox.post(LinkDown(PEER, True))
    assert take(inbox) == [LinkDown(PEER, True)]
    assert inbox.take(time.monotonic() + 0.01) == []
    assert ours.is_closed


def test_a_stream_ends_with_its_link(inbox: Inbox) -> None:
    ours, _ = connected(inbox)
    inbox.post(LinkDown(PEER, False))
    assert take(inbox) == [LinkDown(PEER, False)]
    assert ours.is_closed
    assert inbox.send([(PEER, b"a")]) == [(PEER, b"a")]


def test_a_stream_without_a_link_is_not_wanted(inbox: Inbox) -> None:
    ours, _ = pipe()
    inbox.post(StreamUp(PEER, ours))
    inbox.post(Propose(1, b""))
    assert take(inbox) == [Propose(1, b"")]
    assert ours.is_closed


def test_a_new_stream_replaces_the_old_one(inbox: Inbox) -> None:
    first, _ = connected(inbox)
    second, theirs = pipe()
    inbox.post(StreamUp(PEER, second))
    assert take(inbox) == [LinkUp(PEER)]
    assert first.is_closed
    assert inbox.send([(PEER, b"a")]) == []
    assert theirs.receive() == [b"a"]


def test_what_has_come_before_the_thread_had_the_stream_is_read(inbox: Inbox) -> None:
    ours, theirs = pipe()
    theirs.send(b"early")
    inbox.post(LinkUp(PEER))
    inbox.post(StreamUp(PEER, ours))
    assert take(inbox) == [LinkUp(PEER), LinkUp(PEER), PeerMessage(PEER, b"early")]


def test_closing_closes_every_stream() -> None:
    inbox = Inbox()
    inbox.open()
    held, _ = connected(inbox)
    waiting, _ = pipe()
    inbox.post(StreamUp(OTHER, waiting))
    inbox.close()
    assert held.is_closed
    assert waiting.is_closed
    late, _ = pipe()
    inbox.post(StreamUp(OTHER, late))
    assert late.is_closed
