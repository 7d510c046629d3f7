"""A small fleet, as `scripts/mesh` makes large ones."""

import json
import subprocess
import sys

import pytest

from scripts import fleet


def test_a_fleet_forms_by_itself_works_and_loses_nothing_while_nodes_come_and_go() -> None:
    words = ["--cores", "3", "--edges", "1", "--leaves", "3", "--minutes", "0.05", "--churn", "1", "--json"]
    told = subprocess.run(
        [sys.executable, "-m", "scripts.fleet", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["nodes"] == {"core": 3, "edge": 1, "leaf": 3}
    assert found["sessions"] >= 1
    assert found["lost"] == 0
    assert "all 7 are registered" in told.stderr


def test_wrong_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fleet.main(["--leaves", "9999"])
    assert "at most" in capsys.readouterr().err
