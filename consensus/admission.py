"""What is refused before it is proposed or read, and why."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from consensus.errors import Unavailable
from consensus.snapshot import Quarantine
from consensus.state import queries
from consensus.state.versions import COMMAND_VERSION, behind
from storage.transactions import Store, Transaction


def check_version(store: Store, command: bytes) -> None:
    """What a member cannot apply would stop it: it is not proposed before all can. Raises Unavailable."""
    version = command[0] if command else 1
    if version == 1:
        return
    with store.read() as txn:
        names = [f"{row.name} (meshnode {row.software})" for row in behind(queries.members(txn), version)]
    if version > COMMAND_VERSION:
        names.append("the node that was asked")
    if names:
        raise Unavailable(
            "newer_command",
            f"a command of version {version} is not known to {', '.join(names)}: upgrade first, or remove from the "
            "mesh what will not come back",
        )


def refusal_of(code: str) -> Unavailable | None:
    """Of a leader that will not propose the command, however often it is asked; None: ask again."""
    match code:
        case "newer_command":
            return Unavailable(code, "the leader, or a node that it knows of, must be upgraded first")
        case "too_large" | "malformed":
            return Unavailable(code, "the command was refused before it was proposed; do not repeat it")
        case "disk_low":
            return Unavailable(code, "the disk of the leader is nearly full: it takes no new sessions")
        case _:
            return None


@contextmanager
def read_soundly(store: Store, post: Callable[[Quarantine], None]) -> Iterator[Transaction]:
    """A row that cannot be decoded is not what was written: that is no news to wait for until digests are compared."""
    try:
        with store.read() as txn:
            yield txn
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        post(Quarantine(f"a row cannot be read: {error}"))
        raise quarantined() from error


def quarantined() -> Unavailable:
    return Unavailable(
        "quarantined",
        "the data of this node is damaged and is replaced from another node, which takes a while; ask another node",
    )
