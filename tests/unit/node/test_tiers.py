"""`tier = "auto"`: what a machine is good for, and what becomes of it in a mesh."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from node import machine
from node.machine import look
from node.tiers import Machine, in_mesh, leaf_for

GIB = 1 << 30
ROOMY = Machine(ram_bytes=8 * GIB, cores=4, disk_bytes=100 * GIB, is_disk_lasting=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ram_bytes": GIB - 1}, "RAM of 1023 MiB"),
        ({"cores": 1, "ram_bytes": 2 * GIB - 1}, "one core"),
        ({"is_disk_lasting": False}, "data_dir is in RAM"),
        ({"disk_bytes": 4 * GIB - 1}, "the disk of data_dir"),
    ],
)
def test_a_machine_too_small_for_a_replica_is_a_leaf(changes: dict[str, int], says: str) -> None:
    decided = leaf_for(replace(ROOMY, **changes))
    assert decided is not None
    assert decided.tier == "leaf"
    assert says in decided.why


@pytest.mark.parametrize(
    "changes", [{}, {"ram_bytes": GIB}, {"cores": 1, "ram_bytes": 2 * GIB}, {"disk_bytes": 4 * GIB}]
)
def test_others_hold_one(changes: dict[str, int]) -> None:
    assert leaf_for(replace(ROOMY, **changes)) is None


def test_who_votes_is_core_and_who_does_not_is_edge() -> None:
    assert in_mesh(is_voter=True).tier == "core"
    assert in_mesh(is_voter=False).tier == "edge"


def test_a_machine_is_looked_at_before_its_data_directory_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    here = str(tmp_path).replace(" ", "\\040")
    mounts.write_text(f"disk / ext4 rw 0 0\nram {here}/in\\040ram tmpfs rw 0 0\n")
    limit = tmp_path / "limit"
    limit.write_text("536870912\n")
    monkeypatch.setattr(machine, "_MOUNTS", mounts)
    monkeypatch.setattr(machine, "_GROUP_LIMIT", limit)
    (tmp_path / "in ram").mkdir()
    on_disk, in_ram = look(tmp_path / "data" / "deep"), look(tmp_path / "in ram" / "data")
    assert on_disk.is_disk_lasting
    assert not in_ram.is_disk_lasting
    assert on_disk.ram_bytes == 512 << 20
    assert on_disk.cores >= 1
    limit.write_text("max\n")
    assert look(tmp_path).ram_bytes > 512 << 20
