"""The pytest plugin, as somebody uses it who has a ritual to test."""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

LOAD = [] if entry_points(group="pytest11", name="meshnode") else ["-p", "node.pytest_plugin"]

Run = Callable[..., pytest.RunResult]

RUNS = """
def test_it_runs(mesh):
    mesh.start(cores=1)
    session = mesh.submit(thought="?", branches=[{"ritual": "echo", "task": "hello"}])
    assert mesh.wait_session(session["id"])["status"] == "completed"
"""

SHOWS = """
def test_shows(mesh):
    print("made", type(mesh).__name__, mesh.seed)
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for variable in ("MESHNODE_TEST_SEED", "MESHNODE_TEST_MODE"):
        monkeypatch.delenv(variable, raising=False)

    def run(source: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(source)
        return pytester.runpytest_subprocess(*LOAD, "-p", "no:cacheprovider", "-s", *options)

    return run


def test_a_mesh_runs_in_both_modes(run: Run) -> None:
    result = run(RUNS, "--meshnode-mode=both", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_it_runs?virtual?*", "*test_it_runs?processes?*"])


def test_a_seed_is_of_the_test_unless_one_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(source: str, *options: str) -> list[str]:
        return [line[line.index("made ") :] for line in run(source, *options).outlines if "made " in line]

    first = made(SHOWS)
    assert first == made(SHOWS)
    assert first != made(SHOWS.replace("test_shows", "test_shows_too"))
    assert made(SHOWS, "--meshnode-seed=random") != made(SHOWS, "--meshnode-seed=random")
    assert made(SHOWS, "--meshnode-seed=12") == ["made VirtualMesh 12"]
    marked = f"import pytest\n@pytest.mark.meshnode(seed=9, mode='processes')\n{SHOWS.strip()}\n"
    assert made(marked) == ["made ProcessMesh 9"]
    monkeypatch.setenv("MESHNODE_TEST_SEED", "13")
    assert made(SHOWS) == ["made VirtualMesh 13"]


def test_a_failure_says_what_the_nodes_said_and_how_to_replay(run: Run) -> None:
    result = run("def test_fails(mesh):\n    mesh.start(cores=1)\n    assert False\n", "--meshnode-seed=4")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*meshnode, seed 4*", "--- core-1 (runs)*", "replay: MESHNODE_TEST_SEED=4 pytest *test_fails*"]
    )


def test_no_seed_is_said_to_replay_processes(run: Run) -> None:
    result = run("def test_fails(mesh):\n    mesh.start(cores=1)\n    assert False\n", "--meshnode-mode=processes")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*- meshnode -*", "--- core-1"])
    result.stdout.no_fnmatch_line("*replay:*")


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        (SHOWS, ["--meshnode-seed=x"], "found 'x', allowed is a number or `random`"),
        (f"import pytest\n@pytest.mark.meshnode(mode='real')\n{SHOWS.strip()}\n", [], "there is no mode 'real'"),
        *(
            (
                f"import pytest\n@pytest.mark.meshnode({given})\n{SHOWS.strip()}\n",
                [],
                f"found meshnode({given}), allowed",
            )
            for given in ("'both'", "mdoe='both'", "seed='x'")
        ),
    ],
)
def test_what_is_not_understood_is_refused(run: Run, source: str, options: list[str], says: str) -> None:
    result = run(source, *options)
    assert says in result.stderr.str() + result.stdout.str()
    assert result.ret != 0


def test_nothing_is_imported_for_those_who_do_not_use_it(run: Run) -> None:
    result = run(
        "import sys\n"
        "def test_imports():\n"
        "    heavy = {'aiohttp', 'lmdb', 'msgspec', 'structlog', 'node.testing', 'node.app', 'mesh', 'consensus'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    result.assert_outcomes(passed=1)
    lines = [line for line in result.outlines if not line.startswith("plugins:")]  # pytest lists what is installed
    assert not any("meshnode" in line for line in lines)


def test_the_documentation_has_the_example_that_is_tested() -> None:
    example = (Path(__file__).parent / "test_example.py").read_text()
    assert f"```python\n{example}```" in (ROOT / "docs" / "testing.md").read_text()
