"""Faults of dynamic membership."""

import tempfile
from pathlib import Path

from pysyncobj.node import Node

from tests.pysyncobj.peer import PATIENT, QUICK, Values


def two_changes_are_in_flight() -> str:
    """9: the index of a change is never noted, so the next one is accepted before it is committed."""
    leader = Values("bc", dynamicMembershipChange=True, **QUICK)
    leader.script.connect("b", "c")
    leader.win_election("b")
    leader.is_acknowledged_by("b", 2)
    leader.tick_until(lambda: leader.raftLastApplied == 2)
    refused: list[int] = []
    for name in "de":
        leader.addNodeToCluster(Node(name), callback=lambda result, reason: refused.append(reason))
    leader.doTick()
    assert refused == []
    assert leader.status("partner_nodes_count") == 4
    assert leader.raftCommitIndex == 2
    return "two voters are added by entries 3 and 4 while 2 is committed: majorities of three and of five need not meet"


def a_restart_forgets_a_change_that_is_in_the_log() -> str:
    """17: at restart membership is rebuilt from applied entries only; Raft wants the latest one in the log."""
    with tempfile.TemporaryDirectory() as name:
        journal = str(Path(name) / "journal")
        leader = Values("bc", dynamicMembershipChange=True, journalFile=journal, **QUICK)
        leader.script.connect("b", "c")
        leader.win_election("b")
        leader.is_acknowledged_by("b", 2)
        leader.tick_until(lambda: leader.raftLastApplied == 2)
        leader.addNodeToCluster(Node("d"))
        leader.doTick()
        before = leader.status("partner_nodes_count")
        log = leader.status("log_len")
        leader.destroy()
        again = Values("bc", dynamicMembershipChange=True, journalFile=journal, **PATIENT)
        again.doTick()
        after = again.status("partner_nodes_count")
        assert again.status("log_len") == log
        again.destroy()
    assert (before, after) == (3, 2)
    return "the change is in its log before and after the restart; before, it counts four voters, afterwards three"
