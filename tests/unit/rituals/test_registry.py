"""Which rituals are offered, and what happens to those that cannot be."""

import tomllib
from pathlib import Path

import pytest

from node.rituals.registry import BUILTIN, Registry

ROOT = Path(__file__).resolve().parents[3]


def test_the_builtin_table_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert dict(BUILTIN) == project["project"]["entry-points"]["meshnode.rituals"]


def test_every_builtin_loads_and_describes_itself() -> None:
    registry = Registry.load(entry_points=False)
    assert set(registry) == set(BUILTIN)
    assert registry.problems == ()
    kinds = {name: definition.kind for name, definition in registry.items()}
    assert kinds == {"consolidate": "async", "echo": "async", "wait": "async", "debt_scenario": "cpu", "reflect": "cpu"}
    for definition in registry.values():
        assert definition.description
        described = definition.to_json()
        assert described["name"] == definition.name
        assert all(parameter["meaning"] and parameter["allowed"] for parameter in described["parameters"])


def _module(directory: Path, name: str, text: str) -> None:
    (directory / f"{name}.py").write_text(text)


def test_foreign_rituals_are_described_by_a_child_and_broken_ones_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _module(
        tmp_path,
        "good_ritual",
        "print('noise at import')\n"
        "from node.rituals import *\n"
        "@ritual(version='3', timeout_s=5, concurrency=2, parameters=[Parameter('n', 'int', 'number'),"
        " Parameter('m', 'str', 'mode', default='a', choices=('a', 'b'))])\n"
        "def good(context):\n    '''Good.'''\n",
    )
    _module(tmp_path, "broken_ritual", "import nothing_of_this_name\n")
    _module(tmp_path, "leaving_ritual", "import os\nos._exit(4)\n")
    _module(tmp_path, "exiting_ritual", "import sys\nsys.exit('no')\n")
    _module(tmp_path, "number_ritual", "number = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry.load(
        {
            "leaving": "leaving_ritual:x",
            "broken": "broken_ritual:x",
            "exiting": "exiting_ritual:x",
            "good": "good_ritual:good",
            "missing": "good_ritual:bad",
            "number": "number_ritual:number",
            "echo": "good_ritual:good",
            "no name": "good_ritual:good",
        },
        entry_points=False,
    )
    good = registry["good"]
    assert good.concurrency == 2
    assert (good.version, good.kind, good.timeout_s, good.description, good.source) == ("3", "cpu", 5, "Good.", "extra")
    assert good.check({}) is not None
    assert good.check({"n": 1, "m": "b"}) is None
    assert registry["echo"].source == "meshnode"
    reasons = {problem.name: problem.reason for problem in registry.problems}
    assert set(reasons) == {"broken", "leaving", "exiting", "missing", "number", "echo", "no name"}
    assert "nothing_of_this_name" in reasons["broken"]
    assert "code 4" in reasons["leaving"]
    assert "SystemExit: no" in reasons["exiting"]
    assert "no attribute 'bad'" in reasons["missing"]
    assert "must be a function" in reasons["number"]
    assert "taken by meshnode" in reasons["echo"]
    assert "identifier" in reasons["no name"]


def test_an_import_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(tmp_path, "hanging_ritual", "import threading\nthreading.Event().wait()\n")
    _module(tmp_path, "fine_ritual", "async def fine(context): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("node.rituals.registry.DESCRIBE_TIMEOUT_S", 1.0)
    registry = Registry.load({"hanging": "hanging_ritual:x", "fine": "fine_ritual:fine"}, entry_points=False)
    assert registry["fine"].kind == "async"
    (problem,) = registry.problems
    assert (problem.name, problem.reason) == ("hanging", "importing it took too long")
