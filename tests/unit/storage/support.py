"""An LMDB environment with rows in it, for the tests that reopen it or do something to its files."""

from pathlib import Path

from storage import environment
from storage.environment import Environment

TABLES = ("red",)
MIB = 1024 * 1024
REPOSITORY = Path(environment.__file__).parents[1]


def fill(path: Path, rows: int = 100) -> None:
    store = Environment.open(path, TABLES)
    with store.write() as txn:
        for number in range(rows):
            txn.put("red", b"%06d" % number, bytes(1000))
    store.close()


def row_count(path: Path) -> int:
    store = Environment.open(path, TABLES)
    try:
        with store.read() as snapshot:
            return snapshot.count("red")
    finally:
        store.close()
