"""Says in one sentence how the founding of the mesh stands, what it waits for, and what the operator can do. Pure."""

from mesh.limits import FOUNDING_CROWD_S, PROMISE_UNREACHABLE_S
from mesh.proposals import FLOOR_JUMP_MAX, NUMBER_MAX, FoundingRecord, floor_of
from mesh.sight import Sight
from mesh.tiers import may_vote
from storage.ids import NodeId


def describe(record: FoundingRecord | None, sight: Sight, tier: str, now: float) -> str:
    """For the log and the status page. `record` and `tier` are the node's own; `now` is that of its last input."""
    if record is not None and record.state == "founded":
        joined = "" if sight.own in record.voters else ", joined after its founding"
        return f"mesh {record.mesh_id} of {len(record.voters)} voters{joined}"
    founded = sight.founded()
    if not may_vote(tier):
        waits = "waiting for Core nodes that have founded a mesh"
        return f"linked to mesh {founded[0].mesh_id}" if founded else waits
    if record is not None and record.state == "promised":
        return _promised(record, sight, now)
    odd = {view.expect for view in sight.views.values() if may_vote(view.tier)} - {sight.expect}
    if odd:
        return (
            f"waiting: this node has bootstrap_expect = {sight.expect}, others have "
            f"{', '.join(map(str, sorted(odd)))}; set the same number on every Core node"
        )
    own_floor = floor_of(record)
    floors = {peer: floor_of(view.record) for peer, view in sight.views.items() if may_vote(view.tier)}
    if own_floor >= min([NUMBER_MAX, *(floor + FLOOR_JUMP_MAX for floor in floors.values())]):
        return _spoilt(sight.own)
    spoilt = [peer for peer, floor in floors.items() if floor >= own_floor + FLOOR_JUMP_MAX]
    if spoilt:
        return _spoilt(min(spoilt))
    return _fresh(sight, own_floor)


def _fresh(sight: Sight, own_floor: int) -> str:
    here = 1 + len(sight.fresh_peers(own_floor))
    missing = sight.expect - here
    if missing <= 0 and (promised := sight.promised_peers()):
        return f"waiting: {', '.join(promised)} may be founding a mesh already"
    if missing < 0:
        return (
            f"{here} Core nodes here, more than bootstrap_expect = {sight.expect}: the {sight.expect} lowest ids "
            f"found the mesh once nobody new has come for {FOUNDING_CROWD_S:g} s; the others do not vote in it"
        )
    if missing == 0 and sight.unlinked_count:
        return f"{here} Core nodes here, waiting up to {FOUNDING_CROWD_S:g} s for others that are being dialled"
    if missing == 0:
        return f"agreeing with {here - 1} others on founding the mesh"
    return f"{'alone' if here == 1 else f'{here} Core nodes here'}, waiting for {missing} more"


def _promised(record: FoundingRecord, sight: Sight, now: float) -> str:
    if any(sight.own in other.voters and other.mesh_id != record.mesh_id for other in sight.founded()):
        return (
            f"this node promised to found {record.mesh_id} but is a voter of another founded mesh: its data "
            "directory was changed or restored; remove it to start as a new node"
        )
    away = [voter for voter in record.voters if voter != sight.own and voter not in sight.linked]
    if not away:
        return "agreeing on founding the mesh"
    text = f"founding the mesh, waiting for {', '.join(away)}"
    if all(sight.gone_s(voter, now) < PROMISE_UNREACHABLE_S for voter in away):
        return text
    return (
        f"{text} to come back; if gone for good, remove the data directories of "
        f"{', '.join(voter for voter in record.voters if voter not in away)} and start again: no mesh is founded"
    )


def _spoilt(node_id: NodeId) -> str:
    return (
        f"waiting: the founding number of {node_id} is out of all proportion, so no mesh can be founded with it; "
        "stop that node, remove its data directory and start it as a new node"
    )
