"""Which step of a rotation of the mesh secret is next, and whether it is safe. Pure; the steps are in `mesh.secrets`.

A step is taken on this machine's file first and copied to the others one by one. It is safe when whoever has taken it
can link with whoever has not, which is judged against what every node says that it presents and accepts. Who says
nothing (linked to nobody, or of a version that does not say it) might be parted from the mesh: no step until it does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mesh.secrets import Secrets

STEPS = {"next": 1, "former": 2, None: 3}
"""By the role of a file's second secret: the step that made the file."""

WORDS = {
    1: "the new secret is accepted beside the old one",
    2: "the new secret is presented, and the old one still accepted",
    3: "only the new secret is left",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A node that has to take every step."""

    node_id: str
    name: str
    address: str
    accepts: tuple[str, ...] | None
    """Fingerprints, the presented one first; None: not known, for the reason in `unknown`."""
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """`ready`: the next step is safe. `copy`: not before the file has reached those in `waiting_for`. `unknown`: not
    before those in it can be asked. `foreign`: those in it have secrets that are not in the file. `idle`: no rotation
    is under way."""

    verdict: Literal["ready", "copy", "unknown", "foreign", "idle"]
    waiting_for: tuple[Member, ...] = ()


def members_of(nodes: Sequence[Mapping[str, Any]], asked: str) -> list[Member]:
    """From the `nodes` of `/v1/trust`. No address of the node that was asked: it may be on this machine, and a file
    copied onto itself is lost."""
    return [
        Member(
            row["node_id"],
            row["name"],
            "" if row["node_id"] == asked else row["address"],
            tuple(row["accepts"]) if row["accepts"] else None,
            row["unknown"],
        )
        for row in nodes
    ]


def plan(file: Secrets, after: Secrets | None, members: Sequence[Member]) -> Plan:
    """`file` is what this machine's secret file says now, `after` what it would say after the next step; None: it
    would begin a rotation, and nobody has asked for that."""
    shown = file.fingerprints
    foreign = [member for member in members if member.accepts is not None and not _fits(shown, member.accepts)]
    if foreign:
        return Plan("foreign", tuple(foreign))
    known = [member for member in members if member.accepts is not None]
    if file.other is None:
        behind = [member for member in known if member.accepts != shown]
    else:
        assert after is not None
        behind = [member for member in known if not _can_link(after.fingerprints, member.accepts or ())]
    if behind:
        return Plan("copy", tuple(behind))
    if after is None:
        return Plan("idle")
    unknown = [member for member in members if member.accepts is None]
    return Plan("unknown", tuple(unknown)) if unknown else Plan("ready")


def _can_link(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    return a[0] in b and b[0] in a


def _fits(file: tuple[str, ...], accepts: tuple[str, ...]) -> bool:
    """Whether a node with these secrets is in the same rotation, no further than a step from the file: it is linked to
    whoever has the file, and knows at most one secret more or less."""
    return _can_link(file, accepts) and (set(accepts) <= set(file) or set(file) <= set(accepts))
