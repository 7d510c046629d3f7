"""What the README tells people to run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
START = (ROOT / "README.md").read_text().partition("## Quick start")[2].partition("\n## ")[0]
NAMED = sorted(set(re.findall(r"scripts/(\w+)", START)))


@pytest.mark.parametrize("name", NAMED)
def test_a_script_of_the_quick_start_sets_up_what_it_needs(name: str) -> None:
    """On a machine that has nothing but Python; one that began with its imports ended there."""
    script = ROOT / "scripts" / name
    text = script.read_text()
    assert script.stat().st_mode & 0o111
    assert text.startswith("#!/usr/bin/env bash\n")
    assert re.search(r"^(ensure_venv (runtime|dev)|setup_runtime)$", text, re.MULTILINE)
