"""Holds for every test: system tests take turns, and nothing is left running."""

import fcntl
import threading
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
if not entry_points(group="pytest11", name="meshnode"):  # a checkout that is not installed
    pytest_plugins.append("node.pytest_plugin")

THREADS_END_S = 5.0
"""A thread that has been told to stop may take this long on a busy machine."""

SYSTEM = Path(__file__).parent / "system"


@pytest.fixture(autouse=True)
def _system_tests_take_turns(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Each starts a whole mesh. Between parallel workers a file is the turn; with `--dist loadfile` at most one test
    of each other file is waited for."""
    callspec = getattr(request.node, "callspec", None)
    has_processes = callspec is not None and callspec.params.get("meshnode_mode") == "processes"
    if not has_processes and not request.path.is_relative_to(SYSTEM):
        yield
        return
    with (tmp_path_factory.getbasetemp().parent / "system.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + THREADS_END_S
    while left := [thread for thread in threading.enumerate() if thread not in before and thread.is_alive()]:
        left[0].join(max(0.0, deadline - time.monotonic()))
        if time.monotonic() >= deadline:
            pytest.fail(f"threads left running: {', '.join(thread.name for thread in left)}")
