"""`meshnode backup`: a file that is whole, or none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from consensus.backup import backup_header
from node.cli.exits import Exit
from node.cli.main import main
from storage.dump import encode_dump
from storage.memory import MemoryStore
from tests.unit.cli.conftest import Answer, FakeNode
from tests.unit.consensus.solo import ALL_TABLES, with_sessions

PATH = "/v1/backup"


@pytest.fixture(scope="module")
def content() -> bytes:
    store = MemoryStore(ALL_TABLES)
    with_sessions(store)
    about = {"mesh": "home", "mesh_id": "m1", "node": "ann", "software": "0.1.0", "at_ms": 1_790_000_000_000}
    with store.read() as txn:
        return b"".join(encode_dump(txn, backup_header(txn, about)))


def test_it_is_saved_and_told(
    node: FakeNode, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node.on(PATH, Answer(content=content))
    path = tmp_path / "one.backup"
    assert main(["backup", str(path)]) == Exit.OK
    assert path.read_bytes() == content
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    out = capsys.readouterr().out
    assert "home (m1)" in out
    assert "saved" in out
    assert main(["backup", "--verify", "--json", str(path)]) == Exit.OK
    facts = json.loads(capsys.readouterr().out)
    assert (facts["bytes"], facts["mesh"], facts["node"]) == (len(content), "home", "ann")
    assert len(node.requests) == 1


def test_a_file_that_exists_is_kept_without_force(node: FakeNode, content: bytes, tmp_path: Path) -> None:
    node.on(PATH, Answer(content=content))
    path = tmp_path / "one.backup"
    path.write_text("mine")
    assert main(["backup", str(path)]) == Exit.FAILED
    assert (path.read_text(), node.requests) == ("mine", [])
    assert main(["backup", "--force", str(path)]) == Exit.OK
    assert path.read_bytes() == content


def test_what_breaks_off_or_is_damaged_leaves_nothing(
    node: FakeNode, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.backup"
    path.write_text("the one before")
    node.on(PATH, Answer(content=content, cut_bytes=100))
    assert main(["backup", "--force", str(path)]) == Exit.FAILED
    assert "cut off" in capsys.readouterr().err
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    for broken in (bytes(damaged), content[:-1], b""):
        node.on(PATH, Answer(content=broken))
        assert main(["backup", "--force", str(path)]) == Exit.FAILED
        assert "damaged" in capsys.readouterr().err
    assert path.read_text() == "the one before"
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_refusals_and_files_that_cannot_be(
    node: FakeNode, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node.problem(PATH, 507, "disk_low", "No room.", "Make some.")
    assert main(["backup", str(tmp_path / "one.backup")]) == Exit.FAILED
    assert "fix: Make some." in capsys.readouterr().err
    assert main(["backup", str(tmp_path / "nowhere" / "one.backup")]) == Exit.FAILED
    assert "cannot be written" in capsys.readouterr().err
    assert main(["backup", "--verify", str(tmp_path / "absent")]) == Exit.FAILED
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_room_is_passed_over(
    node: FakeNode, start_node: Callable[[], FakeNode], content: bytes, tmp_path: Path
) -> None:
    other = start_node()
    node.problem(PATH, 507, "disk_low", "No room.", "Make some.")
    other.on(PATH, Answer(content=content))
    assert main(["backup", str(tmp_path / "one.backup"), "--url", f"{node.url},{other.url}"]) == Exit.OK
    assert node.paths() == other.paths() == [PATH]


def test_a_newer_file_says_so(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = bytearray(content)
    newer[9] += 1
    path = tmp_path / "one.backup"
    path.write_bytes(newer)
    assert main(["backup", "--verify", str(path)]) == Exit.FAILED
    assert "Use a newer one" in capsys.readouterr().err
