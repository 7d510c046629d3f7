"""Reading on after LMDB has given up an environment.

When the last write of a commit fails, that of a meta page, LMDB (0.9) puts the old page back as well as it can, and
refuses every further transaction, also those that only read. What was committed before is there all the same: a second
opening, for reading only and without a lock table, as there are no writers any more, sees it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb


def open_remains(
    path: Path, map_bytes: int, tables: Iterable[str], choice: dict[str, Any]
) -> tuple[lmdb.Environment, dict[str, Any]]:
    """The environment and its tables. The other one must be closed. Raises lmdb.Error."""
    names = tuple(tables)
    env = lmdb.open(str(path), map_size=map_bytes, max_dbs=len(names) + 1, readonly=True, lock=False, **choice)
    try:
        return env, {name: env.open_db(name.encode(), create=False) for name in names}
    except BaseException:
        env.close()
        raise
