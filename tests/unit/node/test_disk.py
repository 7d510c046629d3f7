"""New work is refused before anything else is, and all of it comes back by itself."""

from typing import Any

import pytest
import structlog

from node.disk import DiskWatch
from node.service.errors import ServiceError
from storage.errors import StoreClosed
from storage.limits import DISK_LOW_BYTES, DISK_RESERVE_BYTES
from storage.space import Space
from storage.transactions import StoreStatistics


class Store:
    def __init__(self) -> None:
        self.free_bytes = 1 << 40
        self.questions = 0
        self.error: Exception | None = None

    def statistics(self) -> Any:
        self.questions += 1
        if self.error is not None:
            raise self.error
        return StoreStatistics(0, 0, self.free_bytes, 0)


class Bench:
    def __init__(self) -> None:
        self.store = Store()
        self.now = 0.0
        self.watch = DiskWatch(self.store, "/data", lambda: self.now)

    def has_free(self, free_bytes: int) -> DiskWatch:
        self.store.free_bytes = free_bytes
        self.now += 1
        return self.watch


def test_new_work_goes_first_then_all_writing() -> None:
    bench = Bench()
    bench.has_free(DISK_LOW_BYTES).check_new_work()
    with pytest.raises(ServiceError, match="submit to another node") as low:
        bench.has_free(DISK_LOW_BYTES - 1).check_new_work()
    assert low.value.code == "disk_low"
    bench.watch.check_writing()
    for check in (bench.watch.check_new_work, bench.watch.check_writing):
        bench.has_free(DISK_RESERVE_BYTES - 1)
        with pytest.raises(ServiceError, match="goes on by itself") as full:
            check()
        assert full.value.code == "disk_full"
    bench.has_free(1 << 40).check_new_work()


def test_a_change_is_told_once() -> None:
    bench = Bench()
    with structlog.testing.capture_logs() as told:
        for free_bytes in (1 << 40, DISK_LOW_BYTES - 1, DISK_LOW_BYTES - 2, 0, 0, 1 << 40):
            _ = bench.has_free(free_bytes).space
    assert [line["event"] for line in told] == ["disk_low", "disk_full", "disk_has_room"]


def test_the_disk_is_not_asked_for_every_request() -> None:
    bench = Bench()
    for _ in range(100):
        assert bench.watch.space is Space.OK
    assert bench.store.questions == 1


def test_a_store_that_does_not_answer_changes_nothing() -> None:
    bench = Bench()
    assert bench.has_free(0).space is Space.FULL
    bench.store.error = StoreClosed("closed")
    assert bench.has_free(1 << 40).space is Space.FULL
