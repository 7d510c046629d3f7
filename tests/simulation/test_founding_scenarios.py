"""Rules of the founding, each taken away once, in the model of `tests/unit/mesh`: small events in any order."""

import pytest

from mesh.bootstrap import Bootstrap
from mesh.founding_steps import Effect, Tick
from mesh.proposals import FoundingRecord
from tests.unit.mesh.founding_model import Machine, Model, run


def test_founding_with_a_majority_of_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 72 is the first that notices."""

    def maybe_found(self: Bootstrap, held: FoundingRecord, effects: list[Effect]) -> None:
        if self._collects(held) and 2 * len(self._promises | {self.own, held.proposer}) > len(held.voters):
            self._found(held, effects)

    def some_seeds() -> None:
        for seed in range(72, 75):
            run(seed, count=5, expect=3, steps=300)

    some_seeds()
    monkeypatch.setattr(Bootstrap, "_maybe_found", maybe_found)
    with pytest.raises(AssertionError, match="share a voter"):
        some_seeds()


def members_are_killed() -> None:
    """n0 founds with n1 and n2 and is gone before it tells them; they are killed too, and come back to n3."""
    model = Model(4, 3)
    proposer, *members, newcomer = model.nodes
    for pair in ((proposer, members[0]), (proposer, members[1]), (members[0], members[1])):
        model.link(*pair)
    model.see_each_other()
    model.give(model.nodes[proposer], Tick())
    while not model.records:
        for source, target in list(model.flights):
            model.deliver(source, target)
        for member in members:
            model.work(model.nodes[member])
        while model.nodes[proposer].pending and not model.records:
            model.work(model.nodes[proposer], 1)
    for node in (proposer, *members):
        model.crash(node)
    for member in members:
        model.restart(member)
    for _ in range(40):
        for pair in ((members[0], members[1]), (members[0], newcomer), (members[1], newcomer)):
            model.link(*pair)
        model.now += 1
        for node in (*members, newcomer):
            model.give(model.nodes[node], Tick())
        model.work_all()
        while model.deliver_all():
            model.work_all()
    model.check()


def test_a_promise_that_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    members_are_killed()
    real = Model.start

    def start(self: Model, node: Machine) -> None:
        if node.disk is not None and node.disk.state == "promised":
            node.disk = None
        real(self, node)

    monkeypatch.setattr(Model, "start", start)
    with pytest.raises(AssertionError, match="share a voter"):
        members_are_killed()
