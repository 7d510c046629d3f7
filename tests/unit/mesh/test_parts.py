"""The pure parts: frames, queues, the judge, address book, interfaces, diary, refusals."""

import random

import pytest

from mesh import limits
from mesh.discovery.diary import Diary
from mesh.discovery.interfaces import Interface, choose
from mesh.errors import FrameError
from mesh.handshake import Hello, Refuse, cloned_instance, encode, judge, read_hello
from mesh.links.book import AddressBook, Standing, join_address, split_address
from mesh.links.frames import FrameParser, Kind, pack, pack_call, unpack_call
from mesh.links.outbox import Outbox, Priority
from mesh.refusals import Refusals
from storage.ids import InstanceId, MeshId, NodeId
from tests.unit.mesh.support import KeptLog

ME, PEER = NodeId("me"), NodeId("peer")


def hello(**changes: object) -> Hello:
    claims: dict[str, object] = {
        "protocol_min": 1,
        "protocol_max": 1,
        "mesh_name": "home",
        "node_id": PEER,
        "instance_id": InstanceId("1"),
        "node_name": "it",
        "tier": "core",
        **changes,
    }
    return Hello(**claims)  # type: ignore[arg-type]


OURS = hello(node_id=ME, node_name="me", mesh_id=MeshId("m1"))


@pytest.mark.parametrize(
    ("theirs", "code"),
    [
        (hello(), None),
        (hello(mesh_id=MeshId("m1")), None),
        (hello(mesh_id=MeshId("m2")), "other_mesh_id"),
        (hello(mesh_name="work"), "other_mesh_name"),
        (hello(node_id=NodeId("third")), "garbage"),
    ],
)
def test_the_judge(theirs: Hello, code: str | None) -> None:
    refuse = judge(OURS, theirs, PEER)
    assert (None if refuse is None else refuse.code) == code


def test_the_judge_knows_itself_and_its_clone() -> None:
    assert judge(OURS, OURS, ME) == Refuse("self", "a node dialled itself")
    refuse = judge(OURS, hello(node_id=ME, instance_id=InstanceId("2")), ME)
    assert refuse is not None
    assert refuse.code == "cloned_identity"
    assert cloned_instance(hello(), "b", InstanceId("2")).code == "cloned_identity"


def test_hellos_of_other_versions_are_understood_as_such() -> None:
    assert read_hello(encode(OURS)) == OURS
    newer = read_hello(encode(hello(protocol_min=2, protocol_max=3)))
    assert isinstance(newer, Refuse)
    assert newer.code == "protocol_version"
    both = read_hello(encode(hello(protocol_min=1, protocol_max=3)))
    assert isinstance(both, Hello)
    long = read_hello(encode(hello(node_name="x" * 501)))
    assert isinstance(long, Refuse)


def test_frames_come_out_however_they_are_cut() -> None:
    stream = pack(Kind.RAFT, b"one") + pack(Kind.PING, b"") + pack_call(Kind.REQUEST, 7, b"echo", b"x" * 1000)
    for size in (1, 2, 3, 4, 5, 7, 100, len(stream)):
        parser = FrameParser()
        frames = [frame for at in range(0, len(stream), size) for frame in parser.feed(stream[at : at + size])]
        assert [kind for kind, _ in frames] == [Kind.RAFT, Kind.PING, Kind.REQUEST]
        assert unpack_call(frames[2][1]) == (7, "echo", b"x" * 1000)
        assert parser.feed(pack(Kind.PING, b"")) == [(Kind.PING, b"")], "something was left"


def test_bad_frames_are_named_before_their_body_is_kept() -> None:
    with pytest.raises(FrameError) as raised:
        FrameParser(100).feed(b"\x00\x00\x00\x65\x06")
    assert raised.value.code == "oversized_frame"
    with pytest.raises(FrameError, match="unknown frame kind"):
        FrameParser().feed(b"\x00\x00\x00\x05\xff")
    with pytest.raises(FrameError, match="empty frame"):
        FrameParser().feed(b"\x00\x00\x00\x00\x06")
    with pytest.raises(FrameError):
        pack(Kind.RAFT, bytes(limits.FRAME_BYTES_MAX))


def test_urgent_frames_go_first_and_full_classes_shed() -> None:
    outbox = Outbox()
    assert outbox.put(Priority.NOTICE, b"notice")
    assert outbox.put(Priority.REQUEST, b"request")
    assert outbox.put(Priority.RAFT, b"raft")
    assert outbox.put(Priority.CONTROL, b"ping")
    assert outbox.take(1) == [b"ping"]
    assert outbox.take(1000) == [b"raft", b"request", b"notice"]
    assert not outbox
    for _ in range(limits.RAFT_FRAMES_MAX):
        assert outbox.put(Priority.RAFT, b"x")
    assert not outbox.put(Priority.RAFT, b"x")
    assert outbox.put(Priority.CONTROL, b"another class has its own room")
    assert outbox.shed[Priority.RAFT] == 1
    assert outbox.waiting()[0] == limits.RAFT_FRAMES_MAX + 1


def test_addresses_are_bounded_and_proven_ones_go_first() -> None:
    book = AddressBook(ME, lambda peer: False, lambda peer: None, random.Random(1))
    assert not book.note(ME, ["10.0.0.1:1"])
    assert book.note(PEER, ["10.0.0.1:1", "nonsense", "10.0.0.2:99999"])
    assert book.addresses(PEER) == ("10.0.0.1:1",)
    assert not book.note(PEER, ["10.0.0.1:1"])
    assert book.note(PEER, ["10.0.0.9:1"], "name", Standing.PROVEN)
    assert book.addresses(PEER) == ("10.0.0.9:1", "10.0.0.1:1")
    book.note(PEER, [f"10.0.1.{index}:1" for index in range(50)])
    assert len(book.addresses(PEER)) == limits.ADDRESSES_PER_PEER_MAX
    book.drop(PEER, "10.0.0.9:1")
    assert "10.0.0.9:1" not in book.addresses(PEER)
    for index in range(limits.PEERS_KNOWN_MAX + 10):
        book.note(NodeId(f"n{index}"), ["10.0.0.1:1"])
        assert book.addresses(NodeId(f"n{index}"))
    assert len(book.peers()) == limits.PEERS_KNOWN_MAX
    assert book.addresses(PEER)
    assert not book.note(NodeId("nowhere"), ["nonsense"])


def test_the_proven_make_room_for_each_other_by_age_unless_linked() -> None:
    linked = NodeId("n0")
    book = AddressBook(ME, linked.__eq__, lambda peer: None, random.Random(1))
    for index in range(limits.PEERS_KNOWN_MAX):
        book.note(NodeId(f"n{index}"), ["10.0.0.1:1"], standing=Standing.PROVEN)
    book.note(NodeId("n1"), ["10.0.0.1:1"], standing=Standing.PROVEN)
    assert not book.note(NodeId("told"), ["10.0.0.1:1"], standing=Standing.TOLD)
    assert book.note(NodeId("new"), ["10.0.0.1:1"], standing=Standing.PROVEN)
    assert book.addresses(linked)
    assert book.addresses(NodeId("n1"))
    assert not book.addresses(NodeId("n2"))


@pytest.mark.parametrize("address", ["127.0.0.1:7781", "[fd00::1]:7781", "host.lan:1"])
def test_addresses_split_and_join(address: str) -> None:
    assert join_address(*split_address(address)) == address


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x", "fd00::1:7781", "host:१"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|brackets"):
        split_address(address)


UP = 0x1003
INTERFACES = (
    Interface("lo", ("127.0.0.1",), 0x9),
    Interface("eth0", ("192.168.1.5", "192.168.1.6"), UP),
    Interface("docker0", ("172.17.0.1",), UP),
    Interface("wg0", ("10.8.0.1",), 0x91),
    Interface("wlan0", ("192.168.2.5",), 0x1002),
    Interface("eth1", ("192.168.3.5",), 0x3),
)


def names(interfaces: tuple[Interface, ...]) -> list[str]:
    return [interface.name for interface in interfaces]


def test_real_interfaces_are_chosen_and_the_others_explained() -> None:
    choice = choose(INTERFACES, "auto", "auto")
    assert names(choice.chosen) == ["eth0"]
    assert [name for name, _ in choice.skipped] == ["lo", "docker0", "wg0", "wlan0", "eth1"]
    assert dict(choice.skipped)["wlan0"] == "down"


def test_a_bound_node_is_announced_where_it_can_be_reached() -> None:
    assert names(choose(INTERFACES, "auto", "127.0.0.1").chosen) == ["lo"]
    assert choose(INTERFACES, "auto", "0.0.0.0") == choose(INTERFACES, "auto", "auto")
    assert choose(INTERFACES, "auto", "192.168.1.6").chosen[0].addresses == ("192.168.1.6",)


def test_an_explicit_list_is_obeyed() -> None:
    choice = choose(INTERFACES, ["docker0", "192.168.1.6", "eth9"], "auto")
    assert [(item.name, item.addresses) for item in choice.chosen] == [
        ("eth0", ("192.168.1.6",)),
        ("docker0", ("172.17.0.1",)),
    ]
    assert ("eth9", "no such interface or address here") in choice.skipped


def test_the_diary_counts_repeats_and_is_bounded() -> None:
    diary = Diary()
    for at in range(3):
        diary.note(at, "zeroconf", "heard", "x", "eth0")
    (entry,) = diary.entries()
    assert (entry.times, entry.at_ms) == (3, 2)
    for at in range(1000):
        diary.note(at, "zeroconf", "heard", str(at))
    assert len(diary.entries()) == limits.DIARY_ENTRIES_MAX


def test_refusals_are_logged_once_and_the_memory_of_them_is_bounded() -> None:
    log = KeptLog()
    refusals = Refusals(log)
    for port in range(100):
        refusals.note("garbage", f"10.0.0.1:{port + 1}", "junk")
    refusals.note("garbage", "10.0.0.2:1", "junk")
    assert len(log.refusals("garbage")) == 2
    assert refusals.counters["garbage"] == 101
    for index in range(3 * limits.REFUSALS_REMEMBERED_MAX):
        refusals.note("garbage", f"10.1.{index // 250}.{index % 250}:1", "junk")
    assert len(refusals._logged) == limits.REFUSALS_REMEMBERED_MAX
    refusals.forgive("10.0.0.2:1")


def test_a_stranger_is_one_whatever_address_of_his_network_he_takes() -> None:
    log = KeptLog()
    refusals = Refusals(log)
    for index in range(9):
        refusals.note("garbage", f"[fd00::{index}]:1", "junk")
    refusals.note("garbage", "[fd00:0:0:1::1]:1", "junk")
    assert len(log.refusals("garbage")) == 2
    refusals.forgive("[fd00::77]:2")
    refusals.note("garbage", "[fd00::1]:1", "junk")
    assert len(log.refusals("garbage")) == 3


def test_reasons_that_others_make_up_are_bounded() -> None:
    refusals = Refusals(KeptLog())
    refusals.note("garbage", "10.0.0.1:1", "junk")
    for index in range(3 * limits.REFUSAL_REASONS_MAX):
        refusals.note(f"reason-{index}", "10.0.0.1:1", "junk", by_peer=True)
    refusals.note("garbage", "10.0.0.1:1", "junk")
    assert refusals.counters["garbage"] == 2
    assert len(refusals.counters) == limits.REFUSAL_REASONS_MAX + 1
    assert refusals.counters.total() == 3 * limits.REFUSAL_REASONS_MAX + 2
