"""What the LMDB environment does beyond the contract: its record about itself, locks, threads, growing, copies."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from storage import environment
from storage.environment import Environment
from storage.errors import DiskFailed, MapExhausted, ReadersExhausted, StorageError, StoreClosed, StoreLocked
from storage.limits import READERS_MAX
from tests.unit.storage.support import MIB, REPOSITORY, TABLES, fill, row_count


def test_survives_reopening(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "er")
    assert row_count(tmp_path / "deep" / "er") == 100


def test_the_meta_record(tmp_path: Path) -> None:
    store = Environment.open(tmp_path, TABLES, software="1.2.3")
    store.close()
    store = Environment.open(tmp_path, TABLES, software="9")
    assert (store.meta.application, store.meta.format, store.meta.engine) == ("meshnode", 1, "lmdb-0.9")
    assert store.meta.software == "1.2.3"
    assert store.meta.created_at_ms > 0
    store.close()


def test_the_engine_is_not_chosen_by_the_environment(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from storage.environment import Environment as Store; "
    script += "Store.open(Path(sys.argv[1]), []).close()"
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=True,
        cwd=REPOSITORY,
        env={**os.environ, "LMDB_DEFAULT_LIB_VERSION": "1"},
    )
    assert row_count(tmp_path) == 0  # refuses any format but that of 0.9


def test_files_are_private(tmp_path: Path) -> None:
    fill(tmp_path / "data")
    for file in (tmp_path / "data").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


# -- lock --------------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from storage.environment import Environment
store = Environment.open(Path(sys.argv[1]), ["red"])
txn = store.begin_write()
txn.put("red", b"k", b"never committed")
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_dies(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(StoreLocked) as caught:
        Environment.open(tmp_path, TABLES)
    assert caught.value.pid == holder.pid
    assert str(holder.pid) in str(caught.value)
    holder.kill()
    holder.wait()
    assert row_count(tmp_path) == 0


def test_a_second_environment_in_the_same_process_is_refused(tmp_path: Path) -> None:
    store = Environment.open(tmp_path, TABLES)
    with pytest.raises(StoreLocked) as caught:
        Environment.open(tmp_path, TABLES)
    assert caught.value.pid == os.getpid()
    store.close()
    assert row_count(tmp_path) == 0


def test_closed_is_closed(tmp_path: Path) -> None:
    store = Environment.open(tmp_path, TABLES)
    store.close()
    store.close()
    for use in (store.begin_write, store.statistics, lambda: store.read().__enter__(), lambda: store.ensure_room(1)):
        with pytest.raises(StoreClosed):
            use()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="owner"):
        Environment.open(tmp_path / "file", TABLES)


# -- threads -----------------------------------------------------------------------------------------------------------


def test_no_write_on_a_thread_with_a_running_loop(tmp_path: Path) -> None:
    store = Environment.open(tmp_path, TABLES)

    async def write() -> None:
        with store.read() as snapshot:
            assert snapshot.count("red") == 0
        with pytest.raises(RuntimeError, match="event loop"):
            store.begin_write()
        with pytest.raises(RuntimeError, match="event loop"), store.write():
            pass
        await asyncio.to_thread(lambda: store.begin_write().commit())

    asyncio.run(write())
    store.begin_write().commit()
    store.close()


def test_a_write_ends_on_its_own_thread(tmp_path: Path) -> None:
    store = Environment.open(tmp_path, TABLES)
    txn = store.begin_write()
    caught: list[RuntimeError] = []

    def end() -> None:
        try:
            txn.commit()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=end)
    thread.start()
    thread.join(60)
    assert len(caught) == 1
    txn.commit()
    store.close()


# -- growing -----------------------------------------------------------------------------------------------------------


def test_grows_before_it_is_full_while_others_read(tmp_path: Path) -> None:
    store = Environment.open(tmp_path, TABLES, map_bytes=MIB)
    done = threading.Event()
    failures: list[BaseException] = []
    reads = [0, 0, 0]

    def reader(number: int) -> None:
        try:
            while not done.is_set() or not reads[number]:
                with store.read() as snapshot:
                    rows = snapshot.count("red")
                    assert rows % 20 == 0
                    assert sum(1 for _ in snapshot.scan("red", limit=200)) == min(rows, 200)
                    store.statistics()
                reads[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=reader, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for batch in range(100):
            with store.write() as txn:
                for number in range(20):
                    txn.put("red", b"%06d" % (batch * 20 + number), bytes(5000))
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert failures == []
    found = store.statistics()
    assert found.used_bytes > 10 * MIB
    assert found.map_bytes >= 16 * MIB
    store.close()
    store = Environment.open(tmp_path, TABLES, map_bytes=MIB)
    with store.read() as snapshot:
        assert snapshot.count("red") == 2000
    assert store.statistics().map_bytes == found.map_bytes
    store.close()


def test_a_transaction_larger_than_the_map(tmp_path: Path) -> None:
    store = Environment.open(tmp_path, TABLES, map_bytes=MIB)

    def attempt() -> None:
        with store.write() as txn:
            for number in range(1000):
                txn.put("red", b"%06d" % number, bytes(4000))

    attempts = 1
    while True:
        try:
            attempt()
            break
        except MapExhausted:
            attempts += 1
            with store.read() as snapshot:
                assert snapshot.count("red") == 0
    assert 1 < attempts < 6
    with store.read() as snapshot:
        assert snapshot.count("red") == 1000
    store.close()


def test_room_can_be_made_beforehand(tmp_path: Path) -> None:
    store = Environment.open(tmp_path, TABLES, map_bytes=MIB)
    store.ensure_room(20 * MIB)
    assert store.statistics().map_bytes == 32 * MIB
    with store.write() as txn:
        with pytest.raises(RuntimeError):
            store.ensure_room(1)
        for number in range(2000):
            txn.put("red", b"%06d" % number, bytes(8000))
    store.close()


def test_a_map_that_may_not_grow_further(tmp_path: Path) -> None:
    store = Environment.open(tmp_path, TABLES, map_bytes=MIB, map_bytes_max=2 * MIB)
    with pytest.raises(MapExhausted, match="repeat"):
        fill_up(store)
    with pytest.raises(MapExhausted, match="cannot grow"):
        fill_up(store)
    with pytest.raises(MapExhausted, match="cannot grow"):
        store.ensure_room(4 * MIB)
    with store.read() as snapshot:
        assert snapshot.count("red") > 0
    store.close()


def fill_up(store: Environment) -> None:
    for number in range(1000):
        with store.write() as txn:
            txn.put("red", b"%06d" % number, bytes(9000))


def test_a_snapshot_that_never_ends_stops_growth_with_an_explanation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "GROWTH_WAIT_S", 0.01)
    store = Environment.open(tmp_path, TABLES, map_bytes=MIB)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with store.read():
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    with pytest.raises(MapExhausted, match="snapshot was not ended"):
        store.ensure_room(4 * MIB)
    release.set()
    thread.join(60)
    store.ensure_room(4 * MIB)
    store.close()


def test_a_copy_is_a_sound_store(tmp_path: Path) -> None:
    fill(tmp_path / "one")
    store = Environment.open(tmp_path / "one", TABLES)
    store.copy_to(tmp_path / "two")
    with pytest.raises(FileExistsError):
        store.copy_to(tmp_path / "two")
    store.close()
    assert row_count(tmp_path / "two") == 100


def test_snapshots_are_limited(tmp_path: Path) -> None:
    store = Environment.open(tmp_path, TABLES)
    with ExitStack() as stack:
        for _ in range(READERS_MAX):
            stack.enter_context(store.read())
        with pytest.raises(ReadersExhausted):
            stack.enter_context(store.read())
    with store.read() as snapshot:
        assert snapshot.count("red") == 0
    store.close()


def test_a_replacement_that_fails_half_way_leaves_the_old_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "old")
    store = Environment.open(tmp_path / "old", TABLES)
    other = Environment.open(tmp_path / "new", TABLES)

    def fail(source: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(DiskFailed):
        store.adopt(other)
    with pytest.raises(StoreClosed):
        store.begin_write()
    assert row_count(tmp_path / "old") == 100
