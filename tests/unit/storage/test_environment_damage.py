"""What the LMDB environment makes of files that are damaged or not ours, and of disks that are full or failing."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from storage import codec
from storage.environment import Environment
from storage.errors import CorruptStore, DiskFailed, DiskFull, ForeignStore, NewerFormat, StorageError
from tests import sabotage
from tests.unit.storage.support import MIB, REPOSITORY, TABLES, fill, row_count

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


def fill_disk(place: Path) -> None:
    subprocess.run(["dd", "if=/dev/zero", f"of={place}/ballast", "bs=4096"], capture_output=True, check=False)
    assert os.statvfs(place).f_bavail == 0


def run_sabotaged(program: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """In a process of its own; skips where the kernel does not let it refuse calls."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=60,
        check=False,
    )
    if "seccomp" in done.stderr or "prctl" in done.stderr:
        pytest.skip(f"the kernel does not allow the filter: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.skipif(not sabotage.is_possible(), reason="system calls are refused on Linux on x86-64 and arm64 only")
@pytest.mark.parametrize(("calls", "number"), [(sabotage.SYNC, errno.EIO), (sabotage.WRITE, errno.EROFS)])
def test_what_a_failing_disk_did_not_take_is_never_seen(tmp_path: Path, calls: tuple[str, ...], number: int) -> None:
    """The system call itself fails, in a process of its own; afterwards the store is opened again."""
    program = """
import sys
from pathlib import Path
from storage.environment import Environment
from storage.errors import DiskFailed
from tests import sabotage

store = Environment.open(Path(sys.argv[1]), ("red",))
with store.write() as txn:
    txn.put("red", b"before", b"")
sabotage.refuse(tuple(sys.argv[3].split(",")), int(sys.argv[2]))
for _ in range(2):  # the second is refused although the disk is not asked any more
    try:
        with store.write() as txn:
            txn.put("red", b"after", b"")
        sys.exit("it was acknowledged")
    except DiskFailed as error:
        print(error)
with store.read() as snapshot:
    assert [key for key, _ in snapshot.scan("red")] == [b"before"]
store.close()
"""
    done = run_sabotaged(program, tmp_path, number, ",".join(calls))
    assert done.stdout.count("Check the disk") == 2
    store = Environment.open(tmp_path, TABLES)
    with store.read() as snapshot:
        assert [key for key, _ in snapshot.scan("red")] == [b"before"]
    store.close()


@pytest.mark.skipif(not sabotage.is_possible(), reason="system calls are refused on Linux on x86-64 and arm64 only")
def test_reading_goes_on_when_the_meta_page_was_not_written(tmp_path: Path) -> None:
    """Then LMDB gives up the environment. How many calls write the other pages depends on where they lie; so commits of
    all sizes are tried."""
    program = """
import errno, sys
from pathlib import Path
from storage.environment import Environment
from storage.errors import DiskFailed
from tests import sabotage

stores = [Environment.open(Path(sys.argv[1], str(size)), ("red",)) for size in range(1, 30)]
for store in stores:
    with store.write() as txn:
        txn.put("red", b"before", b"kept")
sabotage.refuse(sabotage.META, errno.EIO)
reopened = 0
for size, store in enumerate(stores, 1):
    try:
        with store.write() as txn:
            for number in range(size):
                txn.put("red", b"after %d" % number, bytes(1500))
        sys.exit("it was acknowledged")
    except DiskFailed:
        pass
    for _ in range(2):
        with store.read() as snapshot:
            assert list(snapshot.scan("red")) == [(b"before", b"kept")]
    reopened += store._env.flags()["readonly"]
    assert store.statistics().readers == 0
    store.close()
print(reopened)
"""
    assert int(run_sabotaged(program, tmp_path).stdout) > 0
    store = Environment.open(tmp_path / "20", TABLES)
    with store.read() as snapshot:
        assert list(snapshot.scan("red")) == [(b"before", b"kept")]
    store.close()
