"""Faults of log replication and commitment."""

import time
from typing import Any

from tests.pysyncobj.peer import PATIENT, QUICK, Values, acknowledgement, append, command, entries, rejection


def truncates_what_it_has_acknowledged() -> str:
    """1: a follower truncates on any overlap, not only on a conflict."""
    follower = Values("bc", **PATIENT)
    follower.script.tell("b", append(1, (1, 0), entries(2, "xyz", 1)))
    (answer,) = follower.script.take("next_node_idx")
    assert answer["success"]
    assert answer["next_node_idx"] == 5
    # The leader, sent back by rejections, sends an older, shorter batch again. It agrees with the follower's log.
    follower.script.tell("b", append(1, (1, 0), entries(2, "x", 1)))
    assert follower.status("log_len") == 2, "entries 3 and 4 are kept"
    # The leader has counted the acknowledgement and committed 4 with it. It dies; this follower wins, without them.
    candidate = Values("bc", **QUICK)
    candidate.script.tell("b", append(1, (1, 0), entries(2, "xyz", 1)))
    candidate.script.tell("b", append(1, (1, 0), entries(2, "x", 1)))
    candidate.script.connect("c")
    candidate.win_election("c")
    candidate.put("other")
    candidate.tick_until(lambda: candidate.status("log_len") >= 4)
    candidate.is_acknowledged_by("c", 4)
    candidate.tick_until(lambda: len(candidate.values) == 2)
    assert candidate.values == ["x", "other"]
    return "acknowledged 2 to 4, holds 2 only; as leader it commits another entry 4: 'other' instead of 'z'"


def steps_back_one_entry_a_round() -> str:
    """2: on a conflict the follower asks for the entry before, one a round."""
    follower = Values("bc", **PATIENT)
    follower.script.tell("b", append(1, (1, 0), entries(2, "x" * 50, 1)))
    follower.script.take("next_node_idx")
    previous, rounds = 51, 0
    while True:  # a leader of term 3 whose log differs from index 2 on
        follower.script.tell("c", append(3, (previous, 3 if previous > 1 else 0), []))
        (answer,) = follower.script.take("next_node_idx")
        if answer["success"]:
            break
        previous, rounds = answer["next_node_idx"] - 1, rounds + 1
    assert rounds == 50, f"{rounds} rounds for 50 conflicting entries"
    return "50 conflicting entries of one term take 50 round trips"


def rejects_every_batch_behind_a_rejected_one() -> str:
    """3: each batch in the pipeline behind a rejected one is rejected too, and each rejection restarts the pipeline."""
    follower = Values("bc", **PATIENT)
    for number in range(1, 11):  # the first of the pipeline got lost
        follower.script.tell("b", append(1, (1 + 10 * number, 1), entries(2 + 10 * number, "x" * 10, 1)))
    rejections = [answer for answer in follower.script.take("next_node_idx") if not answer["success"]]
    assert len(rejections) == 10, f"{len(rejections)} rejections of 10 batches"
    leader = leading(batch_bytes=200)
    for _ in range(100):
        leader.put("x")
    leader.tick_until(lambda: leader.status("log_len") >= 102)
    leader.script.take("append_entries")
    sent = 0
    for _ in rejections:  # the answers arrive one after the other, as they were sent
        leader.script.tell("b", rejection(2))
        sent += len(leader.tick_until(lambda: entries_to(leader, "b", 100)))
    assert sent >= 1000, f"{sent} entries sent"
    return f"one lost batch, 10 rejections; the leader sends {sent} entries for a log of 101"


def counts_acknowledgements_of_another_term() -> str:
    """4: acknowledgements carry no term: one for what the leader sent in an earlier term is counted in a later one."""
    leader = leading()  # term 1: entry 2 is its no-op
    for value in "xyz":
        leader.put(value)
    leader.tick_until(lambda: leader.status("log_len") == 5)  # sent to b, whose acknowledgement of 5 is under way
    late = acknowledgement(5)
    assert "term" not in late
    real = Values("bc", **PATIENT)
    real.script.tell("b", append(1, (1, 0), entries(2, "x", 1)))
    assert set(real.script.take("next_node_idx")[0]) == set(late), "what the library sends holds a term"
    # c leads in a later term and replaces 3 to 5, here and on b; then this replica leads again.
    leader.script.tell("c", append(7, (2, 1), entries(3, "c", 7)))
    leader.script.take("next_node_idx")
    leader.win_election("b")
    leader.tick_until(lambda: leader.status("log_len") == 4)
    leader.put("new")
    leader.tick_until(lambda: leader.status("log_len") == 5)
    assert leader.raftCommitIndex < 5
    leader.script.tell("b", late)
    leader.tick_until(lambda: leader.raftCommitIndex == 5)
    return "entry 5 of a later term is committed by an acknowledgement of entry 5 of an earlier one; b holds neither"


def sends_again_what_is_on_its_way() -> str:
    """18: an acknowledgement sets the peer's next index back to itself, so what was sent since is sent again."""
    leader = leading()
    leader.is_acknowledged_by("b", 2)
    leader.put("x")
    leader.tick_until(lambda: entries_to(leader, "b", 1))
    leader.put("y")
    leader.tick_until(lambda: entries_to(leader, "b", 1))
    leader.is_acknowledged_by("b", 3)  # of x; y is still on its way
    again = leader.tick_until(lambda: entries_to(leader, "b", 1))
    assert [entry[1] for entry in again] == [4], "y is not sent again"
    return "entry 4, sent and not lost, is sent again because 3 was acknowledged"


def sends_a_lagging_peer_everything_at_once() -> str:
    """19: there is no window: whatever a peer lacks is handed to its connection in one tick."""
    # A round is cut short only when it takes longer than the period of a heartbeat.
    leader = Values("bc", **{**QUICK, "appendEntriesPeriod": 0.4, "raftMinTimeout": 1.3, "raftMaxTimeout": 1.4})
    leader.script.connect("b", "c")
    leader.win_election("b")
    for number in range(5000):
        leader.put("x" * 1000 + str(number))
    leader.tick_until(lambda: leader.status("next_node_idx_server_b") == 5003)
    leader.script.take("append_entries")
    leader.script.tell("b", rejection(2))
    got = leader.tick_until(lambda: entries_to(leader, "b", 1))
    kilobytes = sum(len(entry[0]) for entry in got) // 1000
    assert kilobytes > 1000, f"{kilobytes} kB"
    return f"{kilobytes} kB in {len(got)} entries handed to the connection in one tick, nothing acknowledged"


def waits_a_tenth_of_a_second_before_it_sends() -> str:
    """12: with the defaults a new entry waits for the next heartbeat."""
    leader = Values("bc", raftMinTimeout=0.31, raftMaxTimeout=0.4, leaderFallbackTimeout=600.0)
    leader.script.connect("b", "c")
    leader.win_election("b")
    leader.is_acknowledged_by("b", 2)
    leader.is_acknowledged_by("c", 2)
    leader.tick_until(lambda: leader.raftCommitIndex == 2)
    waits = []
    for number in range(5):
        leader.tick_until(lambda: leader.script.take("append_entries"))  # a heartbeat has just gone out
        started = time.monotonic()
        leader.put(number)
        leader.tick_until(lambda: entries_to(leader, "b", 1))
        waits.append(time.monotonic() - started)
        leader.is_acknowledged_by("b", 3 + number)
    assert min(waits) > 0.05, f"{min(waits):.3f} s"
    return f"a new entry is sent {1000 * min(waits):.0f} ms after it was proposed, at the earliest"


def a_snapshot_message_commits_the_follower_s_own_log() -> str:
    """14: a snapshot message carries a commit index, up to which the follower commits its own, unverified log."""
    follower = Values("bc", **PATIENT)
    follower.script.tell("b", append(1, (1, 0), entries(2, "xyz", 1)))  # never committed: b had no majority
    follower.script.tell(
        "c", {"type": "append_entries", "term": 2, "commit_index": 900, "serialized": (b"first chunk", True, False)}
    )
    follower.doTick()
    assert follower.values == ["x", "y", "z"], f"applied {follower.values}"
    return "three entries that no majority ever held are applied on the first chunk of a snapshot"


def forwarding_loses_the_outcome() -> str:
    """13: a command forwarded to a leader is reported as failed when the leader changes, although it is applied."""
    follower = Values("bc", **PATIENT)
    follower.script.tell("b", append(1, (1, 0), []))
    told: list[Any] = []
    follower.put("once", callback=lambda result, reason: told.append(reason))
    follower.doTick()
    (forwarded,) = follower.script.take("apply_command")
    # b has it, sends it to c, dies; c leads and commits it.
    kept = [(forwarded["command"], 2, 1), (command("later"), 3, 2)]
    follower.script.tell("c", append(2, (1, 0), kept, commit=3))
    follower.doTick()
    assert told == [5], f"told {told}"
    assert follower.values == ["once", "later"]
    return "the caller is told LEADER_CHANGED ('without command commit'), and the command is applied on the same node"


def an_exception_in_apply_stops_the_replica() -> str:
    """8: an exception while a command is applied stops the replica for ever."""
    alone = Values("", raftMinTimeout=0.04, raftMaxTimeout=0.08, appendEntriesPeriod=0.01)
    for value in ("before", "poison", "after"):
        alone.put(value)
    raised = 0
    ends_at = time.monotonic() + 10
    while raised < 20 and time.monotonic() < ends_at:
        try:
            alone.doTick(0.001)
        except ValueError:
            raised += 1
    assert raised == 20
    assert alone.values == ["before"]
    return f"it raises in every tick; applied {alone.raftLastApplied}, committed {alone.raftCommitIndex}, for ever"


def leading(batch_bytes: int = 2**16) -> Values:
    """A leader of three; its no-op is entry 2."""
    leader = Values("bc", appendEntriesBatchSizeBytes=batch_bytes, **QUICK)
    leader.script.connect("b", "c")
    leader.win_election("b")
    leader.script.take("append_entries")
    return leader


def entries_to(leader: Values, peer: str, count: int) -> list[Any]:
    """Entries sent to this peer since it was asked last, if there are so many."""
    sent = [(to, message) for to, message in leader.script.sent if message["type"] == "append_entries"]
    found = [entry for to, message in sent if to == peer for entry in message["entries"]]
    if len(found) < count:
        return []
    leader.script.sent.clear()
    return found
