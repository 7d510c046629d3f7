"""Secret files taken over, certificates renewed: on a clock of our own."""

import asyncio
import datetime
import ssl
from pathlib import Path
from typing import Any

import pytest

from mesh.identity import Identity
from mesh.keeper import TrustKeeper
from mesh.limits import CERTIFICATE_LIFE_S, DAY_S, TRUST_RETRY_S
from mesh.secrets import MeshSecret, Secrets
from mesh.trust import Dates, Trust, make_trust
from tests.unit.mesh.support import KeptLog

START = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC).timestamp()
OLD, NEW = MeshSecret(bytes(32)), MeshSecret(bytes([1]) * 32)
IDENTITY = Identity.generate()


class Case:
    """A keeper, its clock, and what it has said."""

    def __init__(self, file: Path | None = None, secrets: Secrets | None = None) -> None:
        self.now = START
        self.log = KeptLog()
        self.is_broken = False
        self.changes: list[Trust] = []
        if file is not None and secrets is not None:
            secrets.save(file)
        self.keeper = TrustKeeper(IDENTITY, secrets, "home", file, lambda: self.now, self.log, self.make)
        self.keeper.on_change = self.changes.append

    def make(self, *given: Any) -> Trust:
        if self.is_broken:
            raise ssl.SSLError("no entropy")
        return make_trust(*given)

    def at(self, days: float) -> None:
        self.now = START + days * DAY_S
        self.look()

    def look(self) -> None:
        asyncio.run(self.keeper.look())

    def said(self, event: str) -> list[dict[str, Any]]:
        return [fields for _, name, fields in self.log.lines if name == event]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "secret"


def test_a_certificate_is_renewed_long_before_it_ends() -> None:
    case = Case(secrets=Secrets(OLD))
    assert case.keeper.trust.dates == Dates(START - 30 * DAY_S, START + 90 * DAY_S)
    case.at(29.9)
    assert not case.changes
    for month in range(1, 5):
        case.at(30 * month)
        assert len(case.changes) == month
        assert case.keeper.trust is case.changes[-1]
        assert case.keeper.status().certificate_ends_at == case.now + CERTIFICATE_LIFE_S
    assert not [line for line in case.log.lines if line[0] != "info"]


def test_a_renewal_that_fails_is_tried_again_and_warned_about_at_14_7_and_1_days() -> None:
    case = Case(secrets=Secrets(OLD))
    case.is_broken = True
    for day in range(30, 100):
        for _ in range(3):
            case.at(day)
    assert [fields["days_left"] for fields in case.said("certificate_ends_soon")] == [14, 7, 1]
    assert len(case.said("certificate_not_renewed")) == 1
    assert "no entropy" in case.keeper.status().warnings[0]
    assert not case.changes
    case.is_broken = False
    case.now += TRUST_RETRY_S
    case.look()
    assert len(case.changes) == 1
    assert case.keeper.status().warnings == ()


@pytest.mark.parametrize("days", [-40, -20_000, 400, 2_900_000])
def test_a_clock_that_jumps_gets_a_certificate_for_its_new_time(days: int) -> None:
    case = Case(secrets=Secrets(OLD))
    case.at(days)
    dates = case.keeper.trust.dates
    assert dates.starts_at <= max(case.now, 0.0) <= dates.ends_at
    case.at(0)
    assert case.keeper.trust.dates == Dates.issued_at(START)


def test_a_changed_file_is_taken_over_once_it_has_settled(file: Path) -> None:
    case = Case(file, Secrets(OLD))
    for _ in range(3):
        case.at(0)
    assert not case.changes
    step = Secrets(OLD).with_next(NEW, datetime.date(2026, 3, 1))
    step.replace(file)
    case.at(0)
    assert not case.changes, "it may still be written"
    case.at(0)
    assert [trust.accepted for trust in case.changes] == [step.fingerprints]
    assert case.keeper.status().role == "next"
    assert case.said("secret_changed") == [{"presents": OLD.fingerprint(), "accepts": list(step.fingerprints)}]
    assert OLD.text() not in str(case.log.lines)


def test_a_file_that_cannot_be_used_changes_nothing_and_is_said_once(file: Path) -> None:
    case = Case(file, Secrets(OLD))
    for content, mode, why in (
        (NEW.text()[:30], 0o600, "part of it is missing"),
        (NEW.text(), 0o644, "chmod 600"),
        (None, 0, "cannot read"),
    ):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
            file.chmod(mode)
        for _ in range(4):
            case.at(0)
        assert why in case.said("secret_file_refused")[-1]["detail"]
        assert why in case.keeper.status().warnings[0]
    assert len(case.said("secret_file_refused")) == 3
    assert not case.changes
    Secrets(OLD).replace(file)
    for _ in range(2):
        case.at(0)
    assert case.keeper.status().warnings == ()


def test_a_rotation_left_unfinished_is_warned_about(file: Path) -> None:
    case = Case(file, Secrets(NEW, OLD, "former", datetime.date(2026, 3, 1)))
    case.at(14)
    assert case.keeper.status().warnings == ()
    case.at(15)
    case.at(16)
    assert len(case.said("secret_rotation_unfinished")) == 1
    assert "meshnode secret rotate" in case.keeper.status().warnings[0]
