"""How the `meshnode` command ends: its exit codes, stable, for scripts; errors; Ctrl-C."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    TIMEOUT = 5
    INTERRUPTED = 130


MEANING = {
    Exit.OK: "done",
    Exit.FAILED: "refused or failed (a session that failed, a check that failed)",
    Exit.USAGE: "wrong usage or configuration",
    Exit.UNREACHABLE: "no node could be reached",
    Exit.NOT_FOUND: "no such session, ritual or node",
    Exit.TIMEOUT: "not finished within --timeout",
    Exit.INTERRUPTED: "interrupted by Ctrl-C",
}


class CommandError(Exception):
    """Ends a command: shown as `error: message` and, if there is one, `fix: ...`. `code` is that of the node's
    refusal, if it was one."""

    def __init__(self, message: str, exit_code: Exit, fix: str = "", code: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code
        self.fix = fix


@contextmanager
def outlived(what: str) -> Iterator[None]:
    """Says what goes on in the mesh when Ctrl-C ends the command that waits for it."""
    try:
        yield
    except KeyboardInterrupt:
        print(("\n" if sys.stderr.isatty() else "") + what, file=sys.stderr)  # a terminal stands behind `^C`
        raise
