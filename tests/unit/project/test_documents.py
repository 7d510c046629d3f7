"""Configurations and generated documents are current."""

import re
import subprocess
from pathlib import Path

import pytest

from node.cli import reference
from node.config import load

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("tier", ["solo", "core", "edge", "leaf", "auto"])
def test_configs_load(tier: str) -> None:
    config = load(ROOT / "configs" / f"{tier}.toml", {"HOME": "/home/ann"})
    assert config.node.tier == ("core" if tier == "solo" else tier)


def test_core_config_names_no_machine() -> None:
    """It is copied to three machines unchanged."""
    config = load(ROOT / "configs" / "core.toml", {"HOME": "/home/ann"})
    assert config.mesh.seeds == []
    assert config.mesh.bind == "auto"
    assert config.mesh.bootstrap_expect == 3
    assert str(config.secret_file) == "/home/ann/.config/meshnode/secret"


def test_solo_config_needs_no_preparation() -> None:
    config = load(ROOT / "configs" / "solo.toml", {"HOME": "/home/ann"})
    assert config.mesh.bootstrap_expect == 1
    assert config.secret_file is None
    assert config.token_file is None


def test_reference_is_current() -> None:
    assert (ROOT / reference.PATH).read_text(encoding="utf-8") == reference.text()


def test_reference_check_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "configuration.md"
    assert reference.main([str(path)]) == 0
    assert reference.main(["--check", str(path)]) == 0
    path.write_text("old")
    assert reference.main(["--check", str(path)]) == 1
    assert "is not current; fix: python -m node.cli.reference" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_inside_documents_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", ["scripts/test", "scripts/check", "scripts/lock", "scripts/torture", ".ci/run"])
def test_scripts_explain_themselves(name: str) -> None:
    result = subprocess.run([ROOT / name, "--help"], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0
    assert "usage:" in result.stdout
    assert "set -euo pipefail" in (ROOT / name).read_text(encoding="utf-8")
