"""What the LMDB environment does beyond the contract: growing, full and failing disks, damage, strangers, locks."""

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import lmdb
import pytest

from storage import codec, environment
from storage.environment import Environment
from storage.errors import (
    CorruptStore,
    DiskFailed,
    DiskFull,
    ForeignStore,
    MapExhausted,
    NewerFormat,
    ReadersExhausted,
    StorageError,
    StoreClosed,
    StoreLocked,
)
from storage.limits import READERS_MAX

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


# -- damage and strangers ----------------------------------------------------------------------------------------------


def cut(file: Path, size: int) -> None:
    os.truncate(file, size)


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: cut(file, 0),
        lambda file: cut(file, 100),
        lambda file: cut(file, 4096),
        lambda file: cut(file, 8192),
        lambda file: cut(file, 40_000),
        lambda file: file.write_bytes(os.urandom(MIB)),
        lambda file: overwrite(file, 0, bytes(4096)),
        lambda file: overwrite(file, 4096, bytes(4096)),
        lambda file: overwrite(file, 16 + 24, b"\x01\x02\x03\x04"),
        lambda file: file.unlink(),
    ],
    ids=["empty", "stub", "one-page", "two-pages", "cut", "garbage", "first-zero", "second-zero", "page-size", "gone"],
)
def test_damage_is_refused_and_left_alone(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    fill(tmp_path)
    file = tmp_path / "data.mdb"
    damage(file)
    before = file.read_bytes() if file.exists() else None
    with pytest.raises(CorruptStore, match="join again") as caught:
        Environment.open(tmp_path, TABLES)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.code == "corrupt_store"
    assert (file.read_bytes() if file.exists() else None) == before
    with pytest.raises(CorruptStore):  # and the lock was given back
        Environment.open(tmp_path, TABLES)


def test_the_space_behind_the_last_page_is_not_needed(tmp_path: Path) -> None:
    fill(tmp_path)
    store = Environment.open(tmp_path, TABLES)
    used = store.statistics().used_bytes
    store.close()
    cut(tmp_path / "data.mdb", used)
    assert row_count(tmp_path) == 100
    assert (tmp_path / "data.mdb").stat().st_size == 64 * MIB


def test_foreign_lmdb_is_refused(tmp_path: Path) -> None:
    raw = lmdb.open(str(tmp_path), max_dbs=1)
    with raw.begin(write=True) as txn:
        txn.put(b"k", b"v")
    raw.close()
    before = (tmp_path / "data.mdb").read_bytes()
    with pytest.raises(ForeignStore):
        Environment.open(tmp_path, TABLES)
    assert (tmp_path / "data.mdb").read_bytes().startswith(before[:8192])


def rewrite_meta(path: Path, data: bytes) -> None:
    fill(path)
    raw = lmdb.open(str(path), max_dbs=4, map_size=64 * MIB)
    handle = raw.open_db(b"_meta")
    with raw.begin(write=True) as txn:
        txn.put(b"store", data, db=handle)
    raw.close()


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"application": "meshnode", "format": 2, "novelty": [1], "software": "7.0"}, NewerFormat),
        ({"application": "other", "format": 2}, ForeignStore),
        ({"application": "meshnode", "format": 1}, CorruptStore),
        (17, CorruptStore),
    ],
)
def test_meta_records_that_are_not_ours_now(tmp_path: Path, record: object, error: type[StorageError]) -> None:
    rewrite_meta(tmp_path, codec.encode(record))
    with pytest.raises(error):
        Environment.open(tmp_path, TABLES)


def test_another_lmdb_data_format_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    overwrite(tmp_path / "data.mdb", 16 + 4, b"\x03\0\0\0")
    with pytest.raises(NewerFormat):
        Environment.open(tmp_path, TABLES)


def test_a_creation_that_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / ".new").mkdir()
    (tmp_path / ".new" / "data.mdb").write_bytes(b"half")
    fill(tmp_path)
    assert row_count(tmp_path) == 100
    assert not (tmp_path / ".new").exists()


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


# -- disks -------------------------------------------------------------------------------------------------------------


def test_no_write_begins_in_the_reserve_but_reading_goes_on(tmp_path: Path) -> None:
    fill(tmp_path)
    store = Environment.open(tmp_path, TABLES, disk_reserve_bytes=1 << 60)
    with pytest.raises(DiskFull, match="Make room"):
        store.begin_write()
    with store.read() as snapshot:
        assert snapshot.count("red") == 100
    store.close()


class FailingCommit:
    """Stands before a raw transaction; its commit fails as the kernel would."""

    def __init__(self, raw: lmdb.Transaction, error: lmdb.Error) -> None:
        self.raw, self.error = raw, error

    def commit(self) -> None:
        self.raw.abort()
        raise self.error

    def abort(self) -> None:
        self.raw.abort()


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, DiskFailed)]
)
def test_a_commit_that_the_disk_refuses(tmp_path: Path, number: int, expected: type[StorageError]) -> None:
    fill(tmp_path)
    store = Environment.open(tmp_path, TABLES)
    txn = store.begin_write()
    txn.put("red", b"new", b"")
    txn._raw = FailingCommit(txn._raw, lmdb.Error(f"mdb_txn_commit: {os.strerror(number)}"))  # type: ignore[assignment]
    with pytest.raises(expected):
        txn.commit()
    if expected is DiskFailed:
        with pytest.raises(DiskFailed):  # for good
            store.begin_write()
    else:
        store.begin_write().commit()
    with store.read() as snapshot:
        assert snapshot.get("red", b"new") is None
    store.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a tiny file system needs root")
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_disk_that_becomes_full_inside_a_commit(tiny_disk: Path) -> None:
    store = Environment.open(tiny_disk / "data", TABLES, disk_reserve_bytes=0)
    with store.write() as txn:
        txn.put("red", b"first", b"kept")
    txn = store.begin_write()
    for number in range(1000):
        txn.put("red", b"%06d" % number, bytes(8000))
    with pytest.raises(DiskFull) as caught:
        txn.commit()
    assert "Make room" in str(caught.value)
    with store.read() as snapshot:
        assert list(snapshot.scan("red")) == [(b"first", b"kept")]
    with store.write() as txn:  # a smaller one still fits
        txn.put("red", b"second", b"kept")
    store.close()
    store = Environment.open(tiny_disk / "data", TABLES, disk_reserve_bytes=0)
    with store.read() as snapshot:
        assert [key for key, _ in snapshot.scan("red")] == [b"first", b"second"]
    store.close()


def test_making_a_store_on_a_full_disk(tiny_disk: Path) -> None:
    fill_disk(tiny_disk)
    with pytest.raises(DiskFull):
        Environment.open(tiny_disk / "data", TABLES)
    (tiny_disk / "ballast").unlink()
    Environment.open(tiny_disk / "data", TABLES, disk_reserve_bytes=0).close()


def test_a_full_disk_keeps_nobody_from_starting_and_reading(tiny_disk: Path) -> None:
    path = tiny_disk / "data"
    store = Environment.open(path, TABLES, disk_reserve_bytes=0)
    with store.write() as txn:
        txn.put("red", b"first", b"kept")
    store.close()
    fill_disk(tiny_disk)
    # In a process of its own: what goes wrong here is SIGBUS.
    script = """if True:
        import sys
        from contextlib import ExitStack
        from pathlib import Path
        from storage.environment import Environment
        from storage.errors import DiskFull
        store = Environment.open(Path(sys.argv[1]), ["red"])
        with ExitStack() as stack:
            for _ in range(512):
                assert stack.enter_context(store.read()).count("red") == 1
        try:
            store.begin_write()
        except DiskFull:
            print("refused")
        store.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")


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


def fill_disk(place: Path) -> None:
    subprocess.run(["dd", "if=/dev/zero", f"of={place}/ballast", "bs=4096"], capture_output=True, check=False)
    assert os.statvfs(place).f_bavail == 0
