"""How much may still be taken on, by the free space of the disk. Pure."""

from enum import StrEnum

from storage.limits import DISK_LOW_BYTES, DISK_RESERVE_BYTES


class Space(StrEnum):
    OK = "ok"
    LOW = "low"
    """No new work: what runs needs the rest to finish."""
    FULL = "full"
    """Nothing is written any more; reading goes on."""


def space_of(free_bytes: int, before: Space = Space.OK) -> Space:
    """`before`: what was found last; out of a shortage it takes a quarter more than into it, so that a disk at the mark
    does not flap."""
    if free_bytes < _mark(DISK_RESERVE_BYTES, is_leaving=before is Space.FULL):
        return Space.FULL
    if free_bytes < _mark(DISK_LOW_BYTES, is_leaving=before is not Space.OK):
        return Space.LOW
    return Space.OK


def _mark(mark_bytes: int, *, is_leaving: bool) -> int:
    return mark_bytes * 5 // 4 if is_leaving else mark_bytes
