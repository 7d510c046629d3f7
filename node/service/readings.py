"""What the use-cases answer with."""

from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

from consensus.state.commands import SubmitSession
from consensus.state.rows import Attempt, Branch, Insight, Knowledge, Session
from node.service.ports import LiveView, RitualPort
from storage.ids import NodeId

Level: TypeAlias = Literal["stale", "leader", "linearizable"]
Until: TypeAlias = Literal["change", "terminal"]

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Wanted:
    """How fresh a reading must be. `stale`: as this node's replica is, if it is not older than `max_age_ms`. `leader`:
    with all that the leader had applied when it was asked. `linearizable`: with all that was answered anywhere before
    the question."""

    level: Level = "stale"
    max_age_ms: int | None = None


STALE: Final = Wanted()


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """A value with its freshness: everything up to `as_of_index` is in it."""

    value: T
    as_of_index: int
    level: Level
    age_ms: int | None
    """For how long something may have been answered elsewhere that is not in it; None: not known."""
    leader: NodeId | None

    def of(self, value: U) -> "Reading[U]":
        """Made of this reading's value, and as fresh."""
        return Reading(value, self.as_of_index, self.level, self.age_ms, self.leader)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    rows: list[T]
    next: str | None
    """Cursor of the next page; None at the end."""


@dataclass(frozen=True, slots=True)
class Submitted:
    session: Session | None
    """As it stands on this node; None while the local replica has not applied it yet."""
    index: int
    """Log index of the submission: durable on a majority."""
    as_of_index: int
    leader: NodeId | None
    command: SubmitSession
    created: bool
    """False: the same submission had been accepted before."""


@dataclass(frozen=True, slots=True)
class BranchDetail:
    branch: Branch
    knowledge: Knowledge | None
    attempts: list[Attempt]
    live: LiveView | None


@dataclass(frozen=True, slots=True)
class InsightDetail:
    insight: Insight
    session: Session
    provenance: Page[Branch]
    """The branches that fed it, by index; the rest by cursor in the list of branches."""


@dataclass(frozen=True, slots=True)
class RitualView:
    """A ritual: what this node's registry says of it, if it has it, and who offers which version."""

    name: str
    own: RitualPort | None
    offers: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        described = self.own.to_json() if self.own is not None else {"name": self.name, "description": None}
        return {**described, "here": self.own is not None, "offered_by": self.offers}
