"""Versions of commands: what a mesh of several versions of the software may write into its log.

The first byte of an encoded command is the version that a replica must know to apply it. The rules:

- A new command, and a new field of a command or row, is a new version: a replica that does not know it would make other
  rows of it. Raise COMMAND_VERSION and note in `version_of` what needs it. What an older version can apply keeps its
  older number, so raising it costs nothing until the new thing is used.
- Nobody proposes a command that a member of the mesh does not know (`behind`): new things work once every node is
  upgraded. Members say which version they know in the `software` of their registration, as build metadata
  (`0.2.0+commands.2`; without it: 1), because a field more in their row would itself have been such a change. Who is
  linked and not a member yet says it in its Hello: three versions may found a mesh together.
- A replica that finds a newer command in its log stops rather than pass it over: to skip what others apply is to
  diverge. It has lost nothing and goes on once it is upgraded.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

import msgspec

from consensus.state.commands import (
    AssignBranches,
    Command,
    CompleteBranches,
    DrainMember,
    RegisterMember,
    SetMemberStatus,
    SubmitSession,
)
from consensus.state.rows import Member

COMMAND_VERSION: Final[int] = 2
"""The newest that this software can apply."""

SINCE: Final[Mapping[type[Command], int]] = {DrainMember: 2}
"""Command -> the version that brought it; those of version 1 are left out."""

FIELDS_SINCE: Final[Mapping[type[Command], Mapping[str, int]]] = {
    RegisterMember: {"parent": 2, "parent_instance": 2, "labels": 2, "ritual_limits": 2},
    SubmitSession: {"priority": 2, "concurrency": 2, "speculation": 2, "ritual_concurrency": 2},
    AssignBranches: {"speculative": 2},
    SetMemberStatus: {"registered_at_ms": 2},
}
"""Fields that came later, and the version they need when they hold anything but their default. Rows leave them out then
(`tables.encode_row`), so older versions make the same rows of the same command."""

_LATER_FIELDS: Final = {
    command: [
        (
            field.name,
            field.default_factory() if field.default is msgspec.NODEFAULT else field.default,
            names[field.name],
        )
        for field in msgspec.structs.fields(command)
        if field.name in names
    ]
    for command, names in FIELDS_SINCE.items()
}

SUSPECT_VERSION: Final = 2
"""Since it a member may be suspect."""

PLACEMENT_VERSION: Final = 2
"""Since it branches may have a placement, and rest before they are tried again."""

SPECULATION_VERSION: Final = 2
"""Since it a branch may have two attempts under way."""

_SUFFIX = re.compile(r"\+(?:[0-9A-Za-z.-]+\.)?commands\.([0-9]{1,6})(?:\.|$)")


def version_of(command: Command) -> int:
    """What a replica must know to apply it."""
    needed = SINCE.get(type(command), 1)
    for name, default, version in _LATER_FIELDS.get(type(command), ()):
        if version > needed and getattr(command, name) != default:
            needed = version
    if needed < PLACEMENT_VERSION and _needs_placement(command):
        needed = PLACEMENT_VERSION
    if isinstance(command, SetMemberStatus) and command.status == "suspect":
        needed = max(needed, SUSPECT_VERSION)
    return needed


def _needs_placement(command: Command) -> bool:
    match command:
        case SubmitSession():
            return command.consolidation.placement is not None or any(spec.placement for spec in command.branches)
        case CompleteBranches():
            return any(outcome.retry_at_ms for outcome in command.outcomes)
        case _:
            return False


def labelled(software: str) -> str:
    """The `software` to register with."""
    if COMMAND_VERSION == 1:
        return software
    return f"{software}{'.' if '+' in software else '+'}commands.{COMMAND_VERSION}"


@lru_cache(maxsize=1024)
def known_to(software: str) -> int:
    """The newest command version that a member with this `software` can apply."""
    found = _SUFFIX.search(software)
    return int(found[1]) if found else 1


def behind(members: Iterable[Member], version: int) -> list[Member]:
    """Those that cannot apply a command of this version. Also a dead one: it may come back."""
    return [row for row in members if row.status != "left" and known_to(row.software) < version]


def common(members: Iterable[Member]) -> int:
    """The newest version that every member can apply."""
    return min((known_to(row.software) for row in members if row.status != "left"), default=1)
