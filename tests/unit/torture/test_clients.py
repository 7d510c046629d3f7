"""Clients, record and judgement together find every lie of a mesh, and none in an honest one."""

import time

import pytest

from tests.torture.clients import Board, Client
from tests.torture.history import History
from tests.torture.judgement import judge_indexes, judge_operations
from tests.torture.torture import READER, WRITER
from tests.unit.torture.fake_mesh import FakeMesh

WANTED = 250
"""Operations until a lie must have been told often enough."""


def use(mesh: FakeMesh) -> History:
    history, board = History(), Board()
    clients = [
        Client(f"{kind}-{number}", mesh.daemons, history, board, "seed", weights, 0.004)
        for kind, weights in (("writer", WRITER), ("reader", READER))
        for number in range(2)
    ]
    for client in clients:
        client.start()
    ends_at = time.monotonic() + 60
    while history.counts["writes"] < WANTED and time.monotonic() < ends_at:
        time.sleep(0.02)
    for client in clients:
        client.end()
    for client in clients:
        client.join()
    return history


def test_an_honest_mesh_passes() -> None:
    with FakeMesh() as mesh:
        history = use(mesh)
    found = judge_operations(history)
    assert (found.violations, found.gave_up, judge_indexes(history)) == ([], [], [])
    assert not history.surprises
    assert found.operations > WANTED
    answers = {type(operation.output).__name__ for rows in history.operations.values() for operation in rows}
    assert answers >= {"Created", "Exists", "Conflict", "Seen"}


@pytest.mark.parametrize("lie", ["stale and silent", "forgets", "creates twice", "overwrites", "reopens"])
def test_a_lie_shows_in_the_histories(lie: str) -> None:
    with FakeMesh(lie) as mesh:
        assert judge_operations(use(mesh)).violations


def test_a_stale_node_shows_by_its_indexes() -> None:
    with FakeMesh("stale") as mesh:
        assert judge_indexes(use(mesh))
