"""`meshnode restore`: only into an empty data directory, and only from a whole backup."""

import json
import random
from pathlib import Path

import pytest

from consensus.backup import backup_header
from consensus.recovery import examine
from consensus.state import queries
from node.cli.exits import Exit
from node.cli.main import main
from node.cli.restore import ASIDE, IDENTITY
from node.common import STORE_DIRECTORY
from node.testing import to_toml
from node.wiring import STORE_TABLES, read_founding
from storage.dump import encode_dump
from storage.environment import Environment
from storage.memory import MemoryStore
from tests.unit.consensus.solo import ALL_TABLES, with_sessions
from tests.unit.state.model import S1, S2


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    document: dict[str, dict[str, object]] = {
        "node": {"name": "ann", "data_dir": str(tmp_path / "data")},
        "mesh": {"name": "home", "bind": "127.0.0.1", "bootstrap_expect": 1},
    }
    path.write_text(to_toml(document))
    return path


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    store = MemoryStore(ALL_TABLES)
    with_sessions(store)
    path = tmp_path / "one.backup"
    with store.read() as txn:
        header = backup_header(txn, {"mesh": "home", "mesh_id": "old"})
        path.write_bytes(b"".join(encode_dump(txn, header)))
    return path


def test_a_new_mesh_of_one_voter(
    config: Path, backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config), "restore", str(backup), "--json"]) == Exit.OK
    facts = json.loads(capsys.readouterr().out)
    assert (facts["mesh"], facts["backup"]["mesh_id"]) == ("home", "old")
    data_dir = tmp_path / "data"
    assert sorted(found.name for found in data_dir.iterdir()) == [STORE_DIRECTORY, IDENTITY]
    store = Environment.open(data_dir / STORE_DIRECTORY, STORE_TABLES)
    with store.read() as txn:
        founding, replica = read_founding(txn), examine(txn)
        assert [session.id for session in queries.list_sessions(txn)] == [S2, S1]
    store.close()
    assert founding is not None
    assert replica is not None
    assert (founding.state, founding.mesh_id, founding.former) == ("founded", facts["mesh_id"], ("old",))
    assert founding.voters == replica.voters == (facts["node_id"],)
    # The mesh has one voter, so nothing can be recovered; and what is there is not replaced.
    assert main(["recover", "--config", str(config), "--yes"]) == Exit.FAILED
    assert "one voter" in capsys.readouterr().err
    assert main(["restore", "--config", str(config), str(backup)]) == Exit.FAILED
    assert "is not empty: it holds consensus" in capsys.readouterr().err


def test_damage_leaves_the_directory_empty(
    config: Path, backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = backup.read_bytes()
    dice = random.Random(5)
    damaged = bytearray(whole)
    damaged[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
    for content in (bytes(damaged), whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0"):
        backup.write_bytes(content)
        assert main(["--config", str(config), "restore", str(backup)]) == Exit.FAILED
        assert "one.backup: " in capsys.readouterr().err
        assert [found.name for found in (tmp_path / "data").iterdir()] == [IDENTITY]
    backup.write_bytes(whole)
    assert main(["--config", str(config), "restore", str(backup)]) == Exit.OK


def test_a_restore_that_was_cut_short_is_begun_again(config: Path, backup: Path, tmp_path: Path) -> None:
    left = tmp_path / "data" / ASIDE
    left.mkdir(parents=True)
    (left / "data.mdb").write_bytes(b"half")
    assert main(["--config", str(config), "restore", str(backup)]) == Exit.OK
    assert not left.exists()


def test_what_is_missing_is_said(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restore", str(tmp_path / "absent.backup")]) == Exit.USAGE
    assert "--config FILE is missing" in capsys.readouterr().err
    assert main(["--config", str(config), "restore", str(tmp_path / "absent.backup")]) == Exit.FAILED
    assert "cannot be read" in capsys.readouterr().err
    assert main(["--config", str(config), "recover", "--dry-run"]) == Exit.FAILED
    assert "holds no data of a node" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        main(["--config", str(config), "status"])
    assert refused.value.code == Exit.USAGE
