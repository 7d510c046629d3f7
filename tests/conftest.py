"""Holds for every test: system tests take turns, and nothing is left running."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

THREADS_END_S = 5.0
"""A thread that has been told to stop may take this long on a busy machine."""


SYSTEM = Path(__file__).parent / "system"


def pytest_itemcollected(item: pytest.Item) -> None:
    """With `--dist loadgroup`, all system tests go to one worker: each starts a whole mesh. (Marked here, because xdist
    reads the groups before any `pytest_collection_modifyitems` of ours.)"""
    if item.path.is_relative_to(SYSTEM):
        item.add_marker(pytest.mark.xdist_group("system"))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + THREADS_END_S
    while left := [thread for thread in threading.enumerate() if thread not in before and thread.is_alive()]:
        left[0].join(max(0.0, deadline - time.monotonic()))
        if time.monotonic() >= deadline:
            pytest.fail(f"threads left running: {', '.join(thread.name for thread in left)}")
