"""Versions of commands, with a simulated next one."""

import pytest

from consensus.errors import UpgradeRequired
from consensus.state import apply, encoding, versions
from consensus.state.apply import StateMachine
from consensus.state.commands import Canary, RegisterMember
from consensus.state.encoding import CommandError, decode_command, encode_command
from consensus.state.queries import members
from tests.unit.state.model import A, B, Replica, register, set_status

CANARY = Canary(node_id=A, payload=b"", at_ms=1)


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version 2, which brought the canary."""
    monkeypatch.setattr(versions, "COMMAND_VERSION", 2)
    monkeypatch.setattr(encoding, "COMMAND_VERSION", 2)
    monkeypatch.setattr(versions, "SINCE", {Canary: 2})


def test_a_newer_command_is_never_passed_over() -> None:
    replica = Replica(register(A))
    for version in (2, 3, 255):
        with pytest.raises(UpgradeRequired, match="upgrade this node") as raised:
            replica.apply_bytes(bytes([version]) + encode_command(CANARY)[1:])
        assert (raised.value.version, raised.value.known) == (version, 1)


@pytest.mark.usefixtures("next_version")
def test_a_command_says_the_version_it_needs_and_no_other() -> None:
    assert encode_command(CANARY)[0] == 2
    assert encode_command(register(A))[0] == 1, "what older versions can apply stays theirs"
    assert decode_command(encode_command(CANARY)) == CANARY
    for command, wrong in ((CANARY, 1), (register(A), 2)):
        with pytest.raises(CommandError, match="of another version"):
            decode_command(bytes([wrong]) + encode_command(command)[1:])


def test_the_label_of_the_first_version_is_that_of_the_release_before_labels() -> None:
    assert versions.labelled("0.1.0") == "0.1.0"
    assert versions.known_to("0.1.0") == versions.known_to("") == versions.known_to("0.2.0+local.commands") == 1


@pytest.mark.usefixtures("next_version")
@pytest.mark.parametrize("software", ["0.2.0", "0.2.0+local.7"])
def test_labels_are_read_back(software: str) -> None:
    assert versions.known_to(versions.labelled(software)) == 2


def test_the_slowest_member_decides_until_it_has_left() -> None:
    def at(node: str, software: str) -> RegisterMember:
        return register(A if node == "A" else B, software=software)

    replica = Replica(at("A", "0.2.0+commands.2"), at("B", "0.1.0"))

    def seen() -> tuple[int, list[str]]:
        with replica.store.read() as txn:
            rows = members(txn)
        return versions.common(rows), [row.node_id for row in versions.behind(rows, 2)]

    assert seen() == (1, [B])
    replica.accept(set_status(B, "dead"))
    assert seen() == (1, [B]), "it may come back"
    replica.accept(set_status(B, "left"))
    assert seen() == (2, [])
    assert versions.common([]) == 1


def test_rows_of_a_newer_version_are_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a step back to an older version: what it made of them would differ."""
    machine = StateMachine()
    replica = Replica(register(A))
    with monkeypatch.context() as newer:
        newer.setattr(versions, "COMMAND_VERSION", 2)
        newer.setattr(encoding, "COMMAND_VERSION", 2)
        newer.setattr(apply, "COMMAND_VERSION", 2)
        newer.setattr(versions, "SINCE", {Canary: 2})
        for _ in range(2):
            replica.accept(CANARY)
        replica.accept(register(B))
        with replica.store.read() as txn:
            machine.check(txn)
    with replica.store.read() as txn, pytest.raises(UpgradeRequired, match="upgrade this node"):
        machine.check(txn)
