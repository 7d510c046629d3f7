"""Who is silent, what a peer has earned by coming back, and what a node makes of its own lateness."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.limits import (
    DOUBT_S,
    DOUBT_S_MAX,
    EXTRA_HALVES_S,
    EXTRA_S_MAX,
    HEARTBEAT_S,
    LAG_S,
    PEERS_KNOWN_MAX,
    SILENCE_S,
    SUSPECT_S,
)
from mesh.liveness import Liveness
from storage.ids import InstanceId, NodeId

PEER = NodeId("p")
FIRST, SECOND = InstanceId("first"), InstanceId("second")


def met(at: float = 0.0) -> Liveness:
    liveness = Liveness()
    liveness.met(PEER, FIRST, at)
    return liveness


def test_silence_makes_a_suspect_and_then_ends_the_link() -> None:
    liveness = met()
    assert liveness.verdict(PEER, SUSPECT_S - 0.01) == "alive"
    assert liveness.verdict(PEER, SUSPECT_S) == "suspect"
    assert liveness.verdict(PEER, SILENCE_S) == "silent"
    liveness.heard(PEER, 1.0)
    assert liveness.verdict(PEER, SILENCE_S) == "suspect"
    liveness.forget(PEER)
    assert liveness.silence_s(PEER, 10.0) is None
    assert liveness.verdict(PEER, 10.0) == "silent", "a peer without a link"


def test_who_comes_back_from_a_silence_is_given_more_the_next_time_and_less_with_every_minute() -> None:
    liveness = met()
    liveness.heard(PEER, 4.0)
    extra_s = 4.0 - 2 * HEARTBEAT_S
    assert liveness.extra_s(PEER, 4.0) == extra_s
    assert liveness.verdict(PEER, 4.0 + SILENCE_S) == "suspect"
    assert liveness.verdict(PEER, 4.0 + SILENCE_S + extra_s) == "silent"
    assert liveness.extra_s(PEER, 4.0 + EXTRA_HALVES_S) == extra_s / 2
    liveness.heard(PEER, 4.0 + 1000)
    assert liveness.extra_s(PEER, 1004.0) == EXTRA_S_MAX, "there is an end to it"


def test_regular_heartbeats_earn_nothing() -> None:
    liveness = met()
    for second in range(1, 100):
        liveness.heard(PEER, float(second))
    assert liveness.extra_s(PEER, 100.0) == 0.0


def test_a_process_that_was_given_up_and_comes_back_was_only_slow_and_a_new_one_is_another() -> None:
    liveness = met()
    liveness.forget(PEER, is_silent=True)
    liveness.met(PEER, FIRST, 6.0)
    assert liveness.extra_s(PEER, 6.0) == 4.0
    liveness.forget(PEER, is_silent=True)
    liveness.met(PEER, SECOND, 12.0)
    assert liveness.extra_s(PEER, 12.0) == 0.0
    liveness.forget(PEER)
    liveness.met(PEER, SECOND, 60.0)
    assert liveness.extra_s(PEER, 60.0) == 0.0, "its link was closed, so it was not silent"


def test_time_in_which_this_node_was_deaf_is_not_the_silence_of_others() -> None:
    liveness = met()
    liveness.loop_was_late(9.0, 10.0)
    assert liveness.silence_s(PEER, 10.0) == 1.0
    assert (liveness.lags, liveness.lag_s_max) == (1, 9.0)
    liveness.loop_was_late(0.01, 11.0)
    assert liveness.silence_s(PEER, 11.0) == 2.0, "noise"
    late = met()
    late.loop_was_late(50.0, 10.0)
    assert late.silence_s(PEER, 10.0) == 0.0, "nobody is heard in the future"


def test_a_node_that_lags_or_is_stalled_accuses_nobody_for_a_while() -> None:
    for is_late in (True, False):
        liveness = met()
        if is_late:
            liveness.loop_was_late(LAG_S, 10.0)
        else:
            liveness.doubt(10.0)
        assert liveness.is_doubting(10.0)
        assert liveness.verdict(PEER, 10.0) == "suspect"
        assert liveness.verdict(PEER, 10.0 + DOUBT_S) == "silent"
        assert not liveness.is_doubting(10.0 + DOUBT_S)


def test_doubt_that_lasts_is_believed_no_more_until_it_has_ended() -> None:
    liveness = met()
    at = 0.0
    while at <= DOUBT_S_MAX + 10:
        liveness.doubt(at)
        assert liveness.is_doubting(at) == (at < DOUBT_S_MAX)
        at += 1.0
    liveness.doubt(at + 10 * DOUBT_S)
    assert liveness.is_doubting(at + 10 * DOUBT_S)


@given(
    gaps=st.lists(st.floats(0.001, 30.0), max_size=40),
    lags=st.lists(st.floats(0.0, 3.0), max_size=10),
)
def test_who_is_silent_for_good_is_found_whatever_was_before(gaps: list[float], lags: list[float]) -> None:
    """And the next look is never later than the next verdict."""
    liveness, now = met(), 0.0
    for gap in gaps:
        now += gap
        liveness.heard(PEER, now)
    for lag in lags:
        now += lag
        liveness.loop_was_late(lag, now)
    until = now + DOUBT_S + SILENCE_S + EXTRA_S_MAX
    verdicts = [liveness.verdict(PEER, now)]
    while now < until:
        now = max(liveness.next_look(now), now + 0.1)
        verdicts.append(liveness.verdict(PEER, now))
    assert verdicts[-1] == "silent"


@given(lags=st.lists(st.floats(0.0, 60.0), max_size=30))
def test_however_late_a_node_is_it_does_not_accuse_a_peer_that_speaks(lags: list[float]) -> None:
    """The peer pings every second; what it said in a lag is read just before the late timer, or just after it."""
    for is_read_first in (True, False):
        liveness, now = met(), 0.0
        for lag in lags:
            now += HEARTBEAT_S + lag
            if is_read_first:
                liveness.heard(PEER, now - 0.001)
            liveness.loop_was_late(lag, now)
            assert liveness.verdict(PEER, now) == "alive"
            liveness.heard(PEER, now)


def test_what_is_remembered_of_peers_is_bounded() -> None:
    liveness = Liveness()
    for number in range(3 * PEERS_KNOWN_MAX):
        peer = NodeId(str(number))
        liveness.met(peer, FIRST, float(number))
        liveness.forget(peer)
    assert len(liveness._past) <= PEERS_KNOWN_MAX
