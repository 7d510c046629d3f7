"""Versions of commands, with a simulated next one."""

import msgspec
import pytest
from msgspec.structs import replace

from consensus.errors import UpgradeRequired
from consensus.state import apply, encoding, tables, versions
from consensus.state.apply import StateMachine
from consensus.state.commands import AnyCommand, Canary, RegisterMember
from consensus.state.encoding import CommandError, decode_command, encode_command
from consensus.state.queries import members
from consensus.state.rows import Member
from storage.ids import InstanceId
from tests.unit.state.model import A, B, Replica, drain, register, set_status

CANARY = Canary(node_id=A, payload=b"", at_ms=1)
NEXT = versions.COMMAND_VERSION + 1


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next version, which brought the canary."""
    monkeypatch.setattr(versions, "COMMAND_VERSION", NEXT)
    monkeypatch.setattr(encoding, "COMMAND_VERSION", NEXT)
    monkeypatch.setattr(versions, "SINCE", {Canary: NEXT})


def test_a_newer_command_is_never_passed_over() -> None:
    replica = Replica(register(A))
    for version in (NEXT, NEXT + 1, 255):
        with pytest.raises(UpgradeRequired, match="upgrade this node") as raised:
            replica.apply_bytes(bytes([version]) + encode_command(CANARY)[1:])
        assert (raised.value.version, raised.value.known) == (version, NEXT - 1)


@pytest.mark.usefixtures("next_version")
def test_a_command_says_the_version_it_needs_and_no_other() -> None:
    assert encode_command(CANARY)[0] == NEXT
    assert encode_command(register(A))[0] == 1, "what older versions can apply stays theirs"
    assert decode_command(encode_command(CANARY)) == CANARY
    for command, wrong in ((CANARY, 1), (register(A), NEXT)):
        with pytest.raises(CommandError, match="of another version"):
            decode_command(bytes([wrong]) + encode_command(command)[1:])


def test_the_label_of_the_first_version_is_that_of_the_release_before_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as first:
        first.setattr(versions, "COMMAND_VERSION", 1)
        assert versions.labelled("0.1.0") == "0.1.0"
    assert versions.known_to("0.1.0") == versions.known_to("") == versions.known_to("0.2.0+local.commands") == 1


@pytest.mark.usefixtures("next_version")
@pytest.mark.parametrize("software", ["0.2.0", "0.2.0+local.7"])
def test_labels_are_read_back(software: str) -> None:
    assert versions.known_to(versions.labelled(software)) == NEXT


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
        newer.setattr(versions, "COMMAND_VERSION", NEXT)
        newer.setattr(encoding, "COMMAND_VERSION", NEXT)
        newer.setattr(apply, "COMMAND_VERSION", NEXT)
        newer.setattr(versions, "SINCE", {Canary: NEXT})
        for _ in range(2):
            replica.accept(CANARY)
        replica.accept(register(B))
        with replica.store.read() as txn:
            machine.check(txn)
    with replica.store.read() as txn, pytest.raises(UpgradeRequired, match="upgrade this node"):
        machine.check(txn)


@pytest.mark.parametrize(
    ("command", "version"),
    [
        (register(A), 1),
        (replace(register(A), parent=B, parent_instance="i"), 2),
        (set_status(A, "dead"), 1),
        (replace(set_status(A, "dead"), registered_at_ms=0), 2),
        (set_status(A, "suspect"), 2),
        (drain(A), 2),
    ],
)
def test_a_later_field_needs_its_version_only_when_it_is_used(command: AnyCommand, version: int) -> None:
    assert versions.version_of(command) == version
    assert decode_command(encode_command(command)) == command


def test_a_member_without_later_fields_is_the_row_that_the_first_version_makes() -> None:
    row = Member(
        node_id=A, instance_id=InstanceId("i"), name="a", tier="core", address="", http_address="", slots=1,
        async_slots=1, rituals={}, software="0.1.0",
    )  # fmt: skip
    first = [A, "i", "a", "core", "", "", 1, 1, {}, "0.1.0", "alive", 0, 0, 0, []]
    assert msgspec.msgpack.decode(tables.encode_row(row)) == first
    leaf = replace(row, parent=B, parent_instance="j")
    assert msgspec.msgpack.decode(tables.encode_row(leaf))[:17] == [*first, B, "j"]
    for member in (row, leaf):
        assert tables.decode_member(tables.encode_row(member)) == member
