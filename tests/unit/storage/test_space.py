"""What may be taken on by the free space of the disk, and what the errors of a disk mean."""

import errno
from pathlib import Path

import pytest

from storage.causes import of_os_error
from storage.errors import DiskFailed, DiskFull, StorageError
from storage.limits import DISK_LOW_BYTES, DISK_RESERVE_BYTES
from storage.space import Space, space_of


@pytest.mark.parametrize(
    ("free", "before", "expected"),
    [
        (DISK_LOW_BYTES, Space.OK, Space.OK),
        (DISK_LOW_BYTES - 1, Space.OK, Space.LOW),
        (DISK_RESERVE_BYTES - 1, Space.OK, Space.FULL),
        (0, Space.LOW, Space.FULL),
        (DISK_LOW_BYTES + 1, Space.LOW, Space.LOW),  # it takes more to get out of it than to get into it
        (DISK_LOW_BYTES * 5 // 4, Space.LOW, Space.OK),
        (DISK_RESERVE_BYTES + 1, Space.FULL, Space.FULL),
        (DISK_RESERVE_BYTES * 5 // 4, Space.FULL, Space.LOW),
        (1 << 40, Space.FULL, Space.OK),
    ],
)
def test_space(free: int, before: Space, expected: Space) -> None:
    assert space_of(free, before) is expected


@pytest.mark.parametrize(
    ("number", "expected", "advice"),
    [
        (errno.ENOSPC, DiskFull, "Make room"),
        (errno.EDQUOT, DiskFull, "Make room"),
        (errno.EIO, DiskFailed, "Check the disk"),
        (errno.EROFS, DiskFailed, "read-only"),
        (errno.EACCES, StorageError, "owner"),
    ],
)
def test_errors_of_the_system(number: int, expected: type[StorageError], advice: str) -> None:
    found = of_os_error(OSError(number, "as the system says it"), Path("/data"))
    assert type(found) is expected
    assert advice in str(found)
