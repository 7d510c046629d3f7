"""Pages of rows, bounded in what they read: cursors, filters, and whether a watcher's place is still kept."""

from collections.abc import Callable
from typing import Final, TypeVar

from consensus.state import queries
from consensus.state.limits import EVENTS_RETAINED
from consensus.state.rows import Branch, BranchStatus, Session
from node.service.errors import ServiceError
from node.service.readings import Page
from node.service.watching import Cursor
from storage.ids import SessionId
from storage.transactions import Transaction

PAGE_ROWS_MAX: Final = 1_000
PAGE_ROWS_DEFAULT: Final = 100
SCAN_BATCH_ROWS: Final = 500
SCAN_ROWS_MAX: Final = 10_000
"""Rows that one request may read past while it looks for those of a status: about 50 ms of another thread."""

T = TypeVar("T")


def submit_index(row: Session) -> int:
    return row.submit_index


def branch_index(row: Branch) -> int:
    return row.branch_index


def branches_page(
    txn: Transaction, session_id: SessionId, after: int | None, limit: int, status: BranchStatus | None
) -> Page[Branch]:
    def fetch(start: int | None, count: int) -> list[Branch]:
        return queries.list_branches(txn, session_id, after=start, limit=count)

    if status is None:
        return full_page(fetch(after, limit), limit, branch_index)
    return scan(fetch, after, limit, branch_index, lambda row: row.status == status)


def full_page(rows: list[T], limit: int, cursor: Callable[[T], int]) -> Page[T]:
    return Page(rows, str(cursor(rows[-1])) if len(rows) == limit else None)


def number_cursor(cursor: str | None, name: str) -> int | None:
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise ServiceError(
            "invalid_argument", f"{name}={cursor[:40]!r} is not a cursor.", "Use `next` of the last page."
        )
    return int(cursor)


def check_cursor(txn: Transaction, cursor: Cursor, applied_index: int) -> None:
    """What was pruned is at or below the horizon; if the cursor's index is still there, nothing after it was."""
    horizon = applied_index - EVENTS_RETAINED
    if cursor[0] == 0 or cursor[0] > horizon:
        return
    oldest = queries.oldest_event_index(txn)
    if oldest is not None and oldest <= cursor[0]:
        return
    raise ServiceError(
        "events_gone", f"Events after {cursor[0]} have been dropped; the oldest kept is {oldest}.",
        "Read the state anew (GET /v1/sessions) and watch from its as_of_index; after=0 gives all that is kept.",
        oldest_index=oldest,
    )  # fmt: skip


def scan(
    fetch: Callable[[int | None, int], list[T]], after: int | None, limit: int, cursor: Callable[[T], int],
    keep: Callable[[T], bool],
) -> Page[T]:  # fmt: skip
    """A page of what `keep` lets through, reading at most SCAN_ROWS_MAX rows: it may be short and still have a next."""
    kept: list[T] = []
    scanned = 0
    while scanned < SCAN_ROWS_MAX:
        batch = fetch(after, SCAN_BATCH_ROWS)
        for row in batch:
            after = cursor(row)
            if keep(row):
                kept.append(row)
                if len(kept) == limit:
                    return Page(kept, str(after))
        if len(batch) < SCAN_BATCH_ROWS:
            return Page(kept, None)
        scanned += len(batch)
    return Page(kept, str(after))
