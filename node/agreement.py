"""The agreement of the mesh as the faces see it, from the first moment on.

A node answers HTTP and shows who it waits for long before a mesh is founded. Until then nothing can be proposed, and
whoever tries is told what is missing; reads see an empty state. When the mesh is founded, `join` puts the replicated
group underneath, and nobody else notices.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from consensus.engine import Role
from consensus.errors import Unavailable
from consensus.group import Group
from consensus.replica import ReplicaStatus
from consensus.state.commands import Answer, AnyCommand
from consensus.state.events import Numbered
from storage.ids import NodeId
from storage.transactions import Store, Transaction


class Agreement:
    """Has the surface of `consensus.group.Group` that services use. `waiting_for` says in words what is missing."""

    def __init__(self, node_id: NodeId, store: Store, waiting_for: Callable[[], str]) -> None:
        self._node_id = node_id
        self._store = store
        self._waiting_for = waiting_for
        self._group: Group | None = None
        self._event_watchers: list[Callable[[list[Numbered]], None]] = []

    def join(self, group: Group) -> None:
        """The mesh is founded. To be called before the group is started, so that no event is missed."""
        assert self._group is None, "a node belongs to one group for life"
        self._group = group
        for watch_events in self._event_watchers:
            group.subscribe_events(watch_events)

    async def propose(self, command: AnyCommand, deadline_s: float = 10.0) -> Answer:
        """See `Group.propose`. Before founding: Unavailable `not_founded`."""
        return await self._founded().propose(command, deadline_s)

    async def barrier(self, deadline_s: float = 10.0) -> int:
        """See `Group.barrier`. Before founding: Unavailable `not_founded`."""
        return await self._founded().barrier(deadline_s)

    def read(self) -> AbstractContextManager[Transaction]:
        return self._store.read() if self._group is None else self._group.read()

    def status(self) -> ReplicaStatus:
        """Before founding: a follower of nobody, without voters."""
        if self._group is not None:
            return self._group.status()
        return ReplicaStatus(self._node_id, Role.FOLLOWER, 0, None, 0, 0, 0, 0, (), (), {}, False, {})

    def subscribe_events(self, callback: Callable[[list[Numbered]], None]) -> None:
        self._event_watchers.append(callback)
        if self._group is not None:
            self._group.subscribe_events(callback)

    def _founded(self) -> Group:
        if self._group is None:
            raise Unavailable("not_founded", f"the mesh is not founded yet: {self._waiting_for()}")
        return self._group
