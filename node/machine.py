"""Looks at the machine: what `node.tiers` decides by."""

import os
import shutil
from pathlib import Path
from typing import Final

from node.tiers import Machine

_IN_RAM: Final = frozenset({"tmpfs", "ramfs"})
_MOUNTS = Path("/proc/self/mounts")
_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def look(data_dir: Path) -> Machine:
    """`data_dir` need not exist yet."""
    place = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    return Machine(
        ram_bytes=_ram_bytes(),
        cores=len(os.sched_getaffinity(0)),
        disk_bytes=shutil.disk_usage(place).total,
        is_disk_lasting=file_system(place.resolve()) not in _IN_RAM,
    )


def _ram_bytes() -> int:
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(present, int(_GROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no control group, or no limit in it
        return present


def file_system(place: Path) -> str:
    """The type of the one that holds `place`: of its mount points the longest, of equal ones the latest. Empty if
    this system does not say."""
    found, longest = "", -1
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        mount = Path(point.encode().decode("unicode_escape"))  # spaces are written \040
        if place.is_relative_to(mount) and len(mount.parts) >= longest:
            found, longest = kind, len(mount.parts)
    return found
