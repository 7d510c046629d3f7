"""Fixtures of the system tests: a mesh of three daemons on loopback, and a LAN of network namespaces."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.testing import LocalMesh
from tests.system import lan


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[LocalMesh]:
    """Three daemons, not yet started."""
    with LocalMesh(tmp_path / "mesh") as mesh:
        yield mesh


@pytest.fixture(scope="session")
def needs_namespaces() -> None:
    reason = lan.unavailable_because()
    if reason is not None:
        pytest.skip(reason)
