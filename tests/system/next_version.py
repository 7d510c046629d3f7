"""The daemon as the next version might be: `python -m tests.system.next_version --config FILE`.

It speaks one more link protocol, says more in its Hello, adds a message that nobody knows yet to every Raft frame, and
has one more command, `RenameMember`, of the next command version. SIGUSR1 makes it propose one; its
log says how that ended.
"""

import asyncio
import signal
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

import node
from consensus import messages
from consensus.state import commands, versions
from mesh import handshake

node.__version__ = "0.2.0"
handshake.PROTOCOL_MAX += 1  # type: ignore[misc]
versions.COMMAND_VERSION += 1  # type: ignore[misc]


class RenameMember(commands.Command, frozen=True, kw_only=True, tag="rename_member"):
    node_id: str
    name: str
    at_ms: int


versions.SINCE = {RenameMember: versions.COMMAND_VERSION}  # type: ignore[misc]
commands.AnyCommand = commands.AnyCommand | RenameMember

_encode_hello, _encode_frame = handshake.encode, messages.encode_frame


def _hello_with_more(message: Any) -> bytes:
    encoded = _encode_hello(message)
    if isinstance(message, handshake.Hello):
        return msgspec.msgpack.encode({**msgspec.msgpack.decode(encoded), "of_the_future": ["x", 1]})
    return encoded


def _frame_with_more(said: Sequence[Any]) -> bytes:
    parts = [msgspec.Raw(_encode_frame([message])[1:]) for message in said]  # less the header of a list of one
    return msgspec.msgpack.encode([*parts, msgspec.Raw(msgspec.msgpack.encode([100, 7, "of the future"]))])


handshake.encode = _hello_with_more
messages.encode_frame = _frame_with_more  # type: ignore[assignment]

# Only now what takes these names from those modules:
from consensus.state import apply, encoding, tables  # noqa: E402
from node import app  # noqa: E402
from node.cli.main import main  # noqa: E402
from node.service.times import now_ms  # noqa: E402

_check, _dispatch = encoding.check_command, apply._dispatch


def _check_more(command: Any) -> None:
    if not isinstance(command, RenameMember):
        _check(command)


def _dispatch_more(work: tables.Workspace, command: Any) -> Any:
    if not isinstance(command, RenameMember):
        return _dispatch(work, command)
    key = command.node_id.encode()
    stored = work.txn.get(tables.MEMBERS, key)
    assert stored is not None
    renamed = msgspec.structs.replace(tables.decode_member(stored), name=command.name)
    work.replace(tables.MEMBERS, key, stored, tables.encode(renamed))
    return commands.Applied(index=work.index, changed=1)


encoding.check_command, apply._dispatch = _check_more, _dispatch_more


class NextNode(app.Node):
    async def __aenter__(self) -> "NextNode":
        await super().__aenter__()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: self.own("rename", self._rename()))
        return self

    async def _rename(self) -> None:
        command: Any = RenameMember(node_id=self.node_id, name=f"renamed-{now_ms()}", at_ms=now_ms())
        try:
            answer = await self.group.propose(command, 10.0)
        except Exception as error:
            app.log.info("rename_refused", code=getattr(error, "code", ""), reason=str(error))
        else:
            app.log.info("rename_applied", answer=type(answer).__name__, name=command.name)


app.Node = NextNode  # type: ignore[misc]

if __name__ == "__main__":
    sys.exit(main())
