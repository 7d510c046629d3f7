"""Packages that announce rituals are found, and nothing is imported for it when there are none."""

import subprocess
import sys
from pathlib import Path

import pytest

from node.rituals import registry

ROOT = Path(registry.__file__).resolve().parent.parent.parent


def announce(folder: Path, package: str) -> None:
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[meshnode.rituals]\nhello = rituals_of_others:hello\n")


def test_an_announced_ritual_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(tmp_path, "others")
    monkeypatch.syspath_prepend(tmp_path)
    assert ("hello", "rituals_of_others:hello", "others") in registry._announced()


def test_nothing_is_imported_when_nothing_is_announced(tmp_path: Path) -> None:
    announce(tmp_path, "meshnode")  # of this package itself
    script = (
        "import sys\nfrom node.rituals.registry import Registry\n"
        f"sys.path[:] = [{str(tmp_path)!r}, '/nowhere', *sys.path[:0]]\n"
        "Registry.load()\nassert 'importlib.metadata' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 0, result.stderr
