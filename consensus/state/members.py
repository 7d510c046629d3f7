"""Who is in the mesh: registrations and changes of status, and what becomes of the work of those who are gone.

Rules a reader must not break:
- A new instance of a node takes the place of the former one in one step with the end of the former's attempts.
- A delayed registration never brings a former instance back: the latest former ones are remembered.
- A member that drains, or is suspect, keeps its attempts and gets no new ones.
- `left` is final for an instance that was asked to leave: it may not register any more, the next start of its node may.
  (Version 1 knows no asking to leave, so the rule needs no version of its own: it finds no such row.)
- `dead` is not final, it may have been silent only. Who comes back gets new work; the attempts it lost stay lost.
"""

from msgspec.structs import replace

from consensus.state.branches import release_leases
from consensus.state.commands import Answer, Applied, Canary, DrainMember, Refused, RegisterMember, SetMemberStatus
from consensus.state.events import MemberDraining, MemberRegistered, MemberStatusChanged
from consensus.state.limits import FORMER_INSTANCES_MAX, MEMBERS_MAX
from consensus.state.rows import Failure, LastCanary, Member
from consensus.state.tables import CANARY_KEY, MEMBERS, STATE_DIGEST, Workspace, decode_member, encode, encode_row
from storage.transactions import Transaction


def register(work: Workspace, command: RegisterMember) -> Answer:
    key = command.node_id.encode()
    stored = work.txn.get(MEMBERS, key)
    member = Member(
        node_id=command.node_id,
        instance_id=command.instance_id,
        name=command.name,
        tier=command.tier,
        address=command.address,
        http_address=command.http_address,
        slots=command.slots,
        async_slots=command.async_slots,
        rituals=command.rituals,
        software=command.software,
        joined_at_ms=command.at_ms,
        status_changed_at_ms=command.at_ms,
        registered_at_ms=command.at_ms,
        parent=command.parent,
        parent_instance=command.parent_instance,
        labels=command.labels,
        ritual_limits=command.ritual_limits,
    )
    if stored is None:
        if work.txn.count(MEMBERS) >= MEMBERS_MAX:
            return Refused(
                index=work.index, code="too_many_members", message=f"the mesh knows {MEMBERS_MAX} nodes already"
            )
        work.insert(MEMBERS, key, encode_row(member))
        return _registered(work, member)
    known = decode_member(stored)
    if known.instance_id == member.instance_id:
        if known.status == "left" and known.is_leaving:
            return _has_left(work, known)
        member = replace(member, joined_at_ms=known.joined_at_ms, former_instance_ids=known.former_instance_ids)
        if known.status != "left":
            member = replace(
                member,
                is_draining=known.is_draining,
                is_leaving=known.is_leaving,
                hand_back_at_ms=known.hand_back_at_ms,
            )
        if known.status == "alive":
            member = replace(member, status_changed_at_ms=known.status_changed_at_ms)
        if replace(member, registered_at_ms=known.registered_at_ms) == known:
            return Applied(index=work.index)
        if command.at_ms == known.registered_at_ms and known.status != "alive":
            return Applied(index=work.index, skipped=1)  # the registration we know, again: it says nothing about now
        if command.at_ms < known.registered_at_ms:
            return Refused(
                index=work.index,
                code="stale_registration",
                message=f"a later registration of {command.node_id} is known; register again with the present time",
            )
        work.replace(MEMBERS, key, stored, encode_row(member))
        return _registered(work, member)
    if member.instance_id in known.former_instance_ids:
        return Refused(
            index=work.index,
            code="stale_instance",
            message=f"instance {member.instance_id} of {member.node_id} was followed by {known.instance_id}: "
            "restart it; if both run, the data directory was copied",
        )
    former = [*known.former_instance_ids, known.instance_id][-FORMER_INSTANCES_MAX:]
    work.replace(MEMBERS, key, stored, encode_row(replace(member, former_instance_ids=former)))
    answer = _registered(work, member)
    failure = Failure(
        code="node_restarted", message=f"The daemon of {known.name} was restarted; its attempts are lost."
    )
    release_leases(work, member.node_id, failure, kept=member.instance_id)
    return answer


def _registered(work: Workspace, member: Member) -> Answer:
    work.events.append(
        MemberRegistered(at_ms=work.at_ms, node_id=member.node_id, instance_id=member.instance_id, name=member.name)
    )
    return Applied(index=work.index, changed=1)


def set_status(work: Workspace, command: SetMemberStatus) -> Answer:
    """`changed` counts the member and the attempts that ended with it."""
    found = _of_instance(work, command)
    if isinstance(found, Refused):
        return found
    key, stored, member = found
    if command.registered_at_ms not in (None, member.registered_at_ms):
        return Applied(index=work.index, skipped=1)
    if member.status == command.status:
        return Applied(index=work.index)
    if member.status == "left":
        return Applied(index=work.index, skipped=1)
    changed = replace(member, status=command.status, status_changed_at_ms=command.at_ms)
    work.replace(MEMBERS, key, stored, encode_row(changed))
    work.events.append(MemberStatusChanged(at_ms=work.at_ms, node_id=member.node_id, status=command.status))
    if command.status in ("alive", "suspect"):
        return Applied(index=work.index, changed=1)
    why = "left the mesh" if command.status == "left" else "is not heard from any more"
    failure = Failure(code=f"node_{command.status}", message=f"The node {member.name} {why}; its attempts are lost.")
    return Applied(index=work.index, changed=1 + release_leases(work, member.node_id, failure))


def drain(work: Workspace, command: DrainMember) -> Answer:
    found = _of_instance(work, command)
    if isinstance(found, Refused):
        return found
    key, stored, member = found
    if member.status == "left":
        return _has_left(work, member)
    changed = replace(
        member,
        is_draining=command.is_draining,
        is_leaving=command.is_leaving,
        hand_back_at_ms=command.hand_back_at_ms,
    )
    if changed == member:
        return Applied(index=work.index)
    work.replace(MEMBERS, key, stored, encode_row(changed))
    if (member.is_draining, member.is_leaving) != (changed.is_draining, changed.is_leaving):
        work.events.append(
            MemberDraining(
                at_ms=work.at_ms,
                node_id=member.node_id,
                is_draining=changed.is_draining,
                is_leaving=changed.is_leaving,
            )
        )
    return Applied(index=work.index, changed=1)


def _has_left(work: Workspace, member: Member) -> Refused:
    return Refused(
        index=work.index, code="has_left", message=f"{member.name} has left the mesh; starting it again brings it back"
    )


def _of_instance(work: Workspace, command: SetMemberStatus | DrainMember) -> tuple[bytes, bytes, Member] | Refused:
    """Its key and row, if the instance that the command is about is still the one."""
    key = command.node_id.encode()
    stored = work.txn.get(MEMBERS, key)
    if stored is None:
        return Refused(index=work.index, code="unknown_member", message=f"there is no member {command.node_id}")
    member = decode_member(stored)
    if member.instance_id != command.instance_id:
        return Refused(
            index=work.index,
            code="stale_instance",
            message=f"{command.node_id} runs as instance {member.instance_id} now, not {command.instance_id}",
        )
    return key, stored, member


def canary(txn: Transaction, index: int, command: Canary) -> Answer:
    """Noted beside the digest and not in it: the digest says what the mesh knows, and canaries must cost little."""
    row = LastCanary(index=index, node_id=command.node_id, payload=command.payload, at_ms=command.at_ms)
    txn.put(STATE_DIGEST, CANARY_KEY, encode(row))
    return Applied(index=index, changed=1)
