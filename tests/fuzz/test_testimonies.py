"""What other nodes tell of their links: any bytes give a testimony or nothing, and the leader judges by any of it."""

from hypothesis import given
from hypothesis import strategies as st

from node.scheduler.judgement import Evidence, judge
from node.scheduler.testimony import TESTIMONY_BYTES_MAX, Testimony, decode_testimony, encode_testimony
from storage.ids import InstanceId, NodeId
from tests.unit.scheduler.world import member, up

names = st.sampled_from("abcm") | st.text(max_size=70)
maps = st.dictionaries(names, st.sampled_from(["a-1", "b-1", "c-1", "m-1", ""]), max_size=5)


@given(st.binary(max_size=200))
def test_any_bytes(payload: bytes) -> None:
    said = decode_testimony(payload)
    assert said is None or decode_testimony(encode_testimony(said)) == said
    assert decode_testimony(payload + bytes(TESTIMONY_BYTES_MAX)) is None


@given(st.lists(st.builds(Testimony, st.booleans(), maps, maps), max_size=3))
def test_nobody_who_is_heard_by_the_leader_is_talked_to_death(said: list[Testimony]) -> None:
    witnesses = dict(zip((NodeId("b"), NodeId("c"), NodeId("m")), said, strict=False))
    links = {NodeId(name): up(name) for name in "bcm"}
    assert judge(member("m"), Evidence(NodeId("a"), 60_000, links, witnesses)) == "alive"
    assert member("m").instance_id == InstanceId("m-1")
