"""Rules that hold for every source file."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import node

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("node", "mesh", "consensus", "storage")
LINES_MAX = 500
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES]

TOP_LEVEL = {
    "node", "mesh", "consensus", "storage", "configs", "tests", "scripts", "docs",
    "README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "pyproject.toml",
    "requirements.lock", "requirements-dev.lock",
}  # fmt: skip


def tracked() -> list[str]:
    """Files under version control; everything in the folder where there is none."""
    try:
        output = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return output.splitlines()


def imports(path: Path) -> set[str]:
    """Top-level names that a file imports."""
    found: set[str] = set()
    for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(item, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in item.names}
        elif isinstance(item, ast.ImportFrom) and item.module:
            found.add(item.module.partition(".")[0])
    return found


def test_every_module_imports_alone_without_a_warning() -> None:
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    before = set(sys.modules)\n"
        "    importlib.import_module(name)\n"
        "    for loaded in set(sys.modules) - before:\n"
        f"        if loaded.partition('.')[0] in {PACKAGES!r}:\n"
        "            del sys.modules[loaded]\n"
    )
    names = [name for name in MODULES if not name.endswith("__main__")]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *names],
        capture_output=True, text=True, cwd=ROOT, timeout=280, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("package", ["storage", "mesh", "consensus"])
def test_lower_packages_do_not_import_higher_ones(package: str) -> None:
    allowed = {"storage"} if package != "storage" else set()
    for path in (ROOT / package).rglob("*.py"):
        assert not (imports(path) & set(PACKAGES)) - allowed - {package}, path


def test_no_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LINES_MAX
    }
    assert not long, "a file of more than 500 lines hides two ideas"


def test_every_module_says_what_it_does() -> None:
    silent = [str(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent


def test_nothing_unpickles() -> None:
    forbidden = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
    for path in SOURCES:
        assert not imports(path) & forbidden, path


def test_only_declared_libraries_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=~! ]", line)[0].lower() for line in project["dependencies"]}
    # ifaddr comes with zeroconf, which needs it to do its work.
    allowed = declared | {"ifaddr"} | set(PACKAGES) | set(sys.stdlib_module_names)
    for path in SOURCES:
        of_its_host = {"pytest"} if path.name == "pytest_plugin.py" else set()
        assert not imports(path) - allowed - of_its_host, path


def test_nothing_names_a_machine() -> None:
    pattern = re.compile(r"/root/|/home/(?!ann\b|\{)[a-z]+/|/work/|/opt/(pypi|wheels)|pypi\.org|files\.pythonhosted")
    for name in tracked():
        path = ROOT / name
        if not path.is_file() or path == Path(__file__):
            continue
        match = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
        assert match is None, f"{name}: {match}"


def test_locks_name_no_registry() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "http:" not in text
        assert "https:" not in text
        assert "--index-url" not in text
        for block in re.split(r"\n(?=[a-z])", text.strip()):
            assert "--hash=sha256:" in block, block.splitlines()[0]


def test_locks_agree_and_hold_every_dependency() -> None:
    def versions(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return dict(line.split(" ")[0].split("==") for line in lines if re.match(r"[a-z]", line))

    runtime, development = versions("requirements.lock"), versions("requirements-dev.lock")
    assert runtime.items() <= development.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in project["dependencies"]:
        assert re.split(r"[<>=~! ]", line)[0] in runtime


def test_top_level_entries_are_as_agreed() -> None:
    entries = {name.partition("/")[0] for name in tracked()}
    assert {entry for entry in entries if not entry.startswith(".")} <= TOP_LEVEL


def test_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert node.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_command_is_not_called_node() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert list(project["scripts"]) == ["meshnode"]


def test_no_other_distribution_owns_our_packages() -> None:
    owners = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        assert set(owners.get(package, [])) <= {"meshnode"}
