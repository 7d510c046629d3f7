"""The pytest plugin: the fixture `mesh`, a mesh under test (see `docs/testing.md`).

It is loaded in every pytest run of whoever has meshnode installed, so nothing is imported before a test asks for it.
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from node.testing import MeshUnderTest

MODES = ("virtual", "processes")
BOTH = "both"
SEED_VARIABLE = "MESHNODE_TEST_SEED"
MODE_VARIABLE = "MESHNODE_TEST_MODE"

_MESH: pytest.StashKey[MeshUnderTest] = pytest.StashKey()
_SEED: pytest.StashKey[int] = pytest.StashKey()
"""Of a test that a seed replays: on a virtual clock."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("meshnode", "meshnode: the fixture `mesh`")
    group.addoption(
        "--meshnode-mode",
        choices=[*MODES, BOTH],
        default=os.environ.get(MODE_VARIABLE, MODES[0]),
        help="nodes on a virtual clock in this process, or processes of their own; both: every test twice "
        f"(default: {MODES[0]}, or what {MODE_VARIABLE} says)",
    )
    group.addoption(
        "--meshnode-seed",
        default=os.environ.get(SEED_VARIABLE, ""),
        metavar="N",
        help="a number, the seed of every virtual mesh, or `random` (default: each test has a seed of its own that "
        f"never changes, or what {SEED_VARIABLE} says)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "meshnode(mode, seed): of the fixture `mesh` in this test: `virtual`, `processes` or `both`, and its seed",
    )
    seed = config.getoption("--meshnode-seed")
    if seed not in ("", "random") and not seed.lstrip("-").isdecimal():
        raise pytest.UsageError(f"--meshnode-seed: found {seed!r}, allowed is a number or `random`")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "meshnode_mode" in metafunc.fixturenames:
        _check_marks(metafunc.definition)
        mode = _marked(metafunc.definition, "mode") or metafunc.config.getoption("--meshnode-mode")
        modes = MODES if mode == BOTH else (mode,)
        if unknown := set(modes) - set(MODES):
            raise pytest.UsageError(f"meshnode: there is no mode {unknown.pop()!r}, only {', '.join(MODES)} and {BOTH}")
        metafunc.parametrize("meshnode_mode", modes, scope="function")


@pytest.fixture
def meshnode_mode() -> str:
    """Set for each test by what is asked for."""
    return MODES[0]


@pytest.fixture
def mesh(
    request: pytest.FixtureRequest, meshnode_mode: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MeshUnderTest]:
    """A mesh that is not started yet; everything that the test starts ends with the test."""
    from node.testing import ProcessMesh, VirtualMesh

    seed = _seed(request.node)
    is_virtual = meshnode_mode == "virtual"
    with VirtualMesh(seed) if is_virtual else ProcessMesh(seed, tmp_path_factory.mktemp("mesh")) as made:
        request.node.stash[_MESH] = made
        if is_virtual:
            request.node.stash[_SEED] = seed
        yield made


@pytest.hookimpl(hookwrapper=True)  # the old way, which every pytest that is in use understands
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    report: pytest.TestReport = (yield).get_result()
    mesh = item.stash.get(_MESH, None)
    if mesh is not None and call.when == "call" and report.failed:
        said = "" if "\n--- " in report.longreprtext else f"{mesh.last_words()}\n"
        if (seed := item.stash.get(_SEED, None)) is not None:
            replay = f"replay: {SEED_VARIABLE}={seed} pytest '{item.nodeid}'"
            report.sections.append((f"meshnode, seed {seed}", f"{said}{replay}"))
        elif said:
            report.sections.append(("meshnode", said))


def _seed(item: pytest.Item) -> int:
    marked, asked = _marked(item, "seed"), str(item.config.getoption("--meshnode-seed"))
    if asked == "random":
        return secrets.randbelow(1 << 32)
    if asked:
        return int(asked)
    if marked is not None:
        return int(marked)
    return zlib.crc32(item.nodeid.encode())


def _check_marks(item: pytest.Item) -> None:
    """What would be passed over otherwise: the test would not be what its author thinks."""
    for marker in item.iter_markers("meshnode"):
        if marker.args or not marker.kwargs.keys() <= {"mode", "seed"}:
            given = ", ".join(
                [*map(repr, marker.args), *(f"{name}={value!r}" for name, value in marker.kwargs.items())]
            )
            raise pytest.UsageError(
                f"{item.nodeid}: found meshnode({given}), allowed are mode and seed, as meshnode(mode='both', seed=7)"
            )
        if not isinstance(marker.kwargs.get("seed", 0), int):
            raise pytest.UsageError(
                f"{item.nodeid}: found meshnode(seed={marker.kwargs['seed']!r}), allowed is a number"
            )


def _marked(item: pytest.Item, what: str) -> str | None:
    marker = item.get_closest_marker("meshnode")
    return None if marker is None else marker.kwargs.get(what)
