"""`meshnode secret rotate` against a node that says who accepts what."""

import datetime
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from mesh.secrets import MeshSecret, Secrets
from node.cli.exits import Exit
from node.cli.main import main
from node.cli.rotation import Member, plan
from tests.unit.cli.conftest import FakeNode

DAY = datetime.date(2026, 3, 1)
X, Y, Z = (MeshSecret(bytes([number]) * 32) for number in range(3))
STEPS = [Secrets(X), Secrets(X, Y, "next", DAY), Secrets(Y, X, "former", DAY), Secrets(Y)]


def member(name: str, secrets: Secrets | None) -> Member:
    return Member(f"id-{name}", name, "10.0.0.1:7781", None if secrets is None else secrets.fingerprints, "no link")


def verdict(at: int, *others: Secrets | None) -> str:
    """With this machine's file, and the node that uses it, at step `at`."""
    members = [member("a", STEPS[at])] + [member(f"n{i}", other) for i, other in enumerate(others)]
    return plan(STEPS[at], STEPS[at + 1] if at < 3 else None, members).verdict


def test_a_step_is_taken_only_when_no_node_can_be_parted_by_it() -> None:
    """Every state that two other nodes can be in, at every step."""

    def can_link(a: Secrets, b: Secrets) -> bool:
        return a.presented in b.accepted and b.presented in a.accepted

    states = [*STEPS, Secrets(Z), Secrets(X, Z, "next", DAY)]
    for at, others in itertools.product(range(3), itertools.product(states, repeat=2)):
        is_safe = all(can_link(STEPS[at + 1], other) for other in others)
        is_ready = verdict(at, *others) == "ready"
        assert not is_ready or is_safe, (at, others)
        if all(other == STEPS[at] or (at and other == STEPS[at + 1]) for other in others):
            assert is_ready, (at, others)


def test_what_holds_a_step_up_is_named() -> None:
    assert verdict(0, STEPS[0], None) == "unknown"
    assert verdict(1, STEPS[0], STEPS[1]) == "copy"
    assert verdict(1, STEPS[1], STEPS[3]) == "foreign"
    assert verdict(2, STEPS[1], STEPS[2]) == "copy"
    assert verdict(2, STEPS[2], Secrets(Z)) == "foreign"
    assert verdict(3, STEPS[2]) == "copy"
    assert verdict(3, STEPS[3]) == "idle"


class Mesh:
    """Three nodes, of which the first is asked."""

    def __init__(self, node: FakeNode, secrets: Secrets) -> None:
        self.secrets: dict[str, Secrets | None] = dict.fromkeys("abc", secrets)
        node.on("/status", {"node_id": "id-a", "name": "a"})
        node.on("/v1/trust", lambda request: {"nodes": self.nodes()})

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "node_id": f"id-{name}",
                "name": name,
                "address": f"10.0.0.{name}:7781",
                "accepts": None if secrets is None else list(secrets.fingerprints),
                "unknown": "no link to it" if secrets is None else "",
            }
            for name, secrets in self.secrets.items()
        ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Secrets(X).save(tmp_path / "secret")
    return tmp_path / "secret"


@pytest.fixture
def mesh(node: FakeNode) -> Mesh:
    return Mesh(node, Secrets(X))


def test_it_leads_through_all_three_steps(path: Path, mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["secret", "rotate", str(path)]) == Exit.OK
    assert "no rotation is under way" in capsys.readouterr().out
    assert Secrets.load(path) == Secrets(X)
    for step, arguments in enumerate((["--begin"], [], []), start=1):
        assert main(["secret", "rotate", str(path), "--dry-run", *arguments]) == Exit.OK
        assert f"step {step} of 3 would be taken" in capsys.readouterr().out
        before = path.read_text()
        assert main(["secret", "rotate", str(path), *arguments]) == Exit.OK
        out = capsys.readouterr().out
        assert f"step {step} of 3 taken" in out
        assert f"scp -p {path} 10.0.0.b:{path}" in out
        assert path.read_text() != before
        taken = Secrets.load(path)
        for name in "abc":
            assert main(["secret", "rotate", str(path)]) == (Exit.FAILED)
            out = capsys.readouterr().out
            assert f"copy it to {name}" in out
            assert Secrets.load(path) == taken, "not before the others have it"
            mesh.secrets[name] = taken
    assert main(["secret", "rotate", str(path)]) == Exit.OK
    assert "no rotation is under way" in capsys.readouterr().out
    taken = Secrets.load(path)
    assert taken.other is None
    assert taken.presented != X


def test_a_node_that_cannot_be_asked_holds_everything_up(
    path: Path, mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh.secrets["c"] = None
    assert main(["secret", "rotate", str(path), "--begin", "--json"]) == Exit.FAILED
    answer = json.loads(capsys.readouterr().out)
    assert (answer["verdict"], answer["waiting_for"]) == ("unknown", ["id-c"])
    assert "no link to it" in answer["next"][0]
    assert Secrets.load(path) == Secrets(X)
    assert main(["secret", "rotate", str(path), "--begin", "--json", "--without", "c"]) == Exit.OK
    answer = json.loads(capsys.readouterr().out)
    assert (answer["verdict"], answer["step"]) == ("taken", 1)
    assert answer["accepts"] == list(Secrets.load(path).fingerprints)
    assert MeshSecret.parse(path.read_text().split()[1]).text() not in str(answer)


def test_a_file_of_another_mesh_is_refused(path: Path, mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    mesh.secrets = dict.fromkeys("abc", Secrets(Z))
    assert main(["secret", "rotate", str(path), "--begin"]) == Exit.FAILED
    assert "refused: a, b, c have secrets that" in capsys.readouterr().out
    path.write_text("nonsense")
    assert main(["secret", "rotate", str(path), "--begin"]) == Exit.FAILED
    assert "does not begin with mesh1-" in capsys.readouterr().err


def test_waiting_ends_with_its_timeout(path: Path, mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    mesh.secrets["c"] = Secrets(X, Y, "next", DAY)
    assert main(["secret", "rotate", str(path), "--begin", "--wait", "--timeout", "0.1"]) == Exit.TIMEOUT
    assert "c has not taken over" in capsys.readouterr().err


def test_a_leaf_may_be_asked_and_no_file_is_copied_onto_itself(
    path: Path, mesh: Mesh, node: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node.on("/status", {"node_id": "id-c", "name": "c", "tier": "leaf"})  # the rest is passed on to its parent
    assert main(["secret", "rotate", str(path), "--begin"]) == Exit.OK
    out = capsys.readouterr().out
    assert f"copy it to a: scp -p {path} 10.0.0.a:{path}" in out
    assert "copy it to c, unless that is this machine" in out
