"""Decides, on the leader, what becomes of members that drain. Pure.

A draining member finishes what it executes until the time it was given, and what is left then goes to others. One that
is leaving has left as soon as it executes nothing; the leader takes care of its vote (`node.steward`).
"""

from collections.abc import Sequence

from consensus.state.commands import Requeue, SetMemberStatus
from consensus.state.rows import Failure, Lease, Member
from storage.ids import NodeId


def hand_back(members: Sequence[Member], leases: Sequence[Lease], now_ms: int) -> list[Requeue]:
    """What draining members have not finished in time."""
    late = {
        member.node_id: member.name
        for member in members
        if member.is_draining and member.hand_back_at_ms is not None and member.hand_back_at_ms <= now_ms
    }
    if not late:
        return []
    return [
        Requeue(
            session_id=lease.session_id,
            branch_index=lease.branch_index,
            attempt=lease.attempt,
            failure=Failure(
                code="node_draining",
                message=f"The node {late[lease.node_id]} drains and did not finish in time; it goes on elsewhere.",
            ),
            is_lost=True,
        )
        for lease in leases
        if lease.node_id in late
    ]


def departures(
    members: Sequence[Member], leases: Sequence[Lease], leader: NodeId, now_ms: int
) -> list[SetMemberStatus]:
    """Who has nothing left to do here. A leader that is to leave hands over first, and a parent waits for its Leaf
    nodes to find another one, as long as it may take for its work."""
    if not any(member.is_leaving for member in members):
        return []
    busy = {leader, *(lease.node_id for lease in leases)}
    for leaf in members:
        parent = next((member for member in members if member.node_id == leaf.parent), None)
        if parent is not None and leaf.status == "alive" and now_ms < (parent.hand_back_at_ms or 0):
            busy.add(parent.node_id)
    return [
        SetMemberStatus(node_id=member.node_id, instance_id=member.instance_id, status="left", at_ms=now_ms)
        for member in members
        if member.is_leaving and member.status != "left" and member.node_id not in busy
    ]
