"""The secret file, and the steps of a rotation."""

import datetime
import itertools
from pathlib import Path

import pytest

from mesh.errors import SecretError
from mesh.secrets import MeshSecret, Secrets

OLD, NEW = MeshSecret(bytes(32)), MeshSecret(bytes([1]) * 32)
DAY = datetime.date(2026, 3, 1)
STEPS = [
    Secrets(OLD),
    Secrets(OLD).with_next(NEW, DAY),
    Secrets(OLD).with_next(NEW, DAY).turned(DAY),
    Secrets(OLD).with_next(NEW, DAY).turned(DAY).without_former(),
]


def can_link(a: Secrets, b: Secrets) -> bool:
    return a.presented in b.accepted and b.presented in a.accepted


def test_no_two_nodes_are_ever_parted_while_a_step_is_taken_one_by_one() -> None:
    for before, after in itertools.pairwise(STEPS):
        assert all(can_link(a, b) for a in (before, after) for b in (before, after))
    assert not can_link(STEPS[0], STEPS[2])
    assert not can_link(STEPS[1], STEPS[3])
    assert not can_link(STEPS[0], STEPS[3])


@pytest.mark.parametrize("step", STEPS)
def test_every_step_survives_its_file(tmp_path: Path, step: Secrets) -> None:
    path = tmp_path / "secret"
    step.save(path)
    assert Secrets.load(path) == step
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("# by hand\n\n" + step.text().replace("\n", "  # a remark\n"))
    assert Secrets.load(path) == step
    STEPS[0].replace(path)
    assert Secrets.load(path) == STEPS[0]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        (f"{OLD.text()} next 2026-03-01", "stands first"),
        (f"{OLD.text()}\n{NEW.text()}", "needs the word"),
        (f"{OLD.text()}\n{NEW.text()} later 2026-03-01", "needs the word"),
        (f"{OLD.text()}\n{NEW.text()} next", "needs the word"),
        (f"{OLD.text()}\n{NEW.text()} next soon", "not one like 2026-03-01"),
        (f"{OLD.text()}\n{OLD.text()} next 2026-03-01", "stands twice"),
        (f"{OLD.text()}\n{NEW.text()} next 2026-03-01\n{NEW.text()} former 2026-03-01", "at most two"),
        (f"{OLD.text()}\n{NEW.text()[:-1]} next 2026-03-01", "part of it is missing"),
    ],
)
def test_a_file_that_is_not_understood_is_refused_with_the_reason(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(SecretError, match=why) as raised:
        Secrets.load(path)
    assert raised.value.code == "secret_malformed"
    assert OLD.text() not in str(raised.value)


def test_secrets_are_shown_by_fingerprint_only() -> None:
    shown = repr(STEPS[1])
    assert OLD.text() not in shown
    assert OLD.fingerprint() in shown
    assert NEW.fingerprint() in shown
