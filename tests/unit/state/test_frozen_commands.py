"""Commands of every released version make the same rows as then, so replicas of several versions agree."""

import lzma
from pathlib import Path

import pytest

from consensus.state.apply import apply, digest
from consensus.state.tables import TABLES
from storage.memory import MemoryStore

FROZEN = sorted((Path(__file__).parents[2] / "data").glob("*/commands.xz"))


@pytest.mark.parametrize("log", FROZEN, ids=lambda path: path.parent.name)
def test_a_log_of_a_released_version_gives_the_digests_that_it_gave(log: Path) -> None:
    store = MemoryStore(TABLES)
    for index, line in enumerate(lzma.decompress(log.read_bytes()).decode().splitlines(), 1):
        command, expected = line.split(" ")
        with store.write() as txn:
            apply(txn, index, bytes.fromhex(command))
            assert digest(txn).hex() == expected, f"command {index}"
