"""Faults of elections and leadership."""

import time

from tests.pysyncobj.peer import QUICK, Values
from tests.pysyncobj.replication import leading


def one_voter_is_counted_twice() -> str:
    """5: votes are counted, not keyed by voter."""
    candidate = Values("bcde", **QUICK)
    candidate.script.connect("b")
    (asked, *_) = candidate.tick_until(lambda: candidate.script.take("request_vote"))
    for _ in range(2):
        candidate.script.tell("b", {"type": "response_vote", "term": asked["term"]})
    assert candidate._isLeader()
    return "leads a mesh of five with its own vote and one other, heard twice"


def a_returning_node_unseats_the_leader() -> str:
    """10: there is no pre-vote: any higher term unseats a leader that everybody hears."""
    leader = leading()
    leader.is_acknowledged_by("b", 2)
    leader.tick_until(lambda: leader.raftCommitIndex == 2)
    behind = {"type": "request_vote", "term": leader.raftCurrentTerm + 10, "last_log_index": 1, "last_log_term": 0}
    leader.script.tell("c", behind)
    assert not leader._isLeader()
    assert not leader.script.take("response_vote"), "its log is behind: it cannot even be elected"
    return "a node that was cut off, with an old log that can win no vote, unseats the leader by its term"


def an_isolated_leader_goes_on_believing() -> str:
    """11: a leader that hears nobody stays leader for 30 s by default."""
    settings = {name: value for name, value in QUICK.items() if name != "leaderFallbackTimeout"}
    leader = Values("bc", **settings)
    leader.script.connect("b", "c")
    leader.win_election("b")
    for peer in "bc":
        leader.script._onNodeDisconnected(next(node for node in leader.otherNodes if node.id == peer))
    until = time.monotonic() + 10 * QUICK["raftMaxTimeout"]
    while time.monotonic() < until:
        leader.doTick(0.005)
    assert leader._isLeader()
    assert not leader.hasQuorum
    assert leader.conf.leaderFallbackTimeout == 30.0
    return "after ten election timeouts without any connection it still leads; the default is 30 s"


def a_leader_that_steps_down_stands_at_once() -> str:
    """20: a leader does not move its election deadline, so it lies in the past when it steps down."""
    leader = leading()
    term = leader.raftCurrentTerm + 10
    until = time.monotonic() + 2 * QUICK["raftMaxTimeout"]
    while time.monotonic() < until:
        leader.doTick(0.005)
    leader.script.tell("c", {"type": "request_vote", "term": term, "last_log_index": 1, "last_log_term": 0})
    assert not leader._isLeader()
    leader.script.take("request_vote")
    leader.doTick()
    (asked, *_) = leader.script.take("request_vote")
    assert asked["term"] == term + 1
    return "unseated by a higher term, it stands in the next tick, with no random delay, one term further"
