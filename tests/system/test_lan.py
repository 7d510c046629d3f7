"""The spoiled network of the other tests does what it says: otherwise they would prove nothing."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.system import lan as lan_module
from tests.system.lan import Lan

PORT = 9


@pytest.fixture
def lan(needs_namespaces: None) -> Iterator[Lan]:
    reason = lan_module.spoiling_unavailable_because()
    if reason is not None:
        pytest.skip(reason)
    with Lan(3) as lan:
        for source, target in ((0, 1), (1, 2), (2, 0)):  # they know each other's hardware addresses
            assert heard(lan, source, target) == 20
        yield lan


def heard(lan: Lan, source: int, target: int, count: int = 20) -> int:
    """How many of so many datagrams arrive."""

    def open_at(number: int) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((lan.address(number), PORT))
        made.settimeout(0.5)
        return made

    with lan.inside(source, lambda: open_at(source)) as sender, lan.inside(target, lambda: open_at(target)) as receiver:
        for _ in range(count):
            sender.sendto(b"x" * 100, (lan.address(target), PORT))
        arrived = 0
        with contextlib.suppress(TimeoutError):
            while arrived < count:
                receiver.recv(200)
                arrived += 1
        return arrived


def test_a_cut_is_one_way_and_mends(lan: Lan) -> None:
    assert heard(lan, 0, 1) == 20
    lan.cut(0, 1)
    assert heard(lan, 0, 1) == 0
    assert heard(lan, 1, 0) == 20
    assert heard(lan, 0, 2) == 20
    assert heard(lan, 2, 1) == 20
    lan.mend(0, 1)
    assert heard(lan, 0, 1) == 20


def test_cuts_add_up(lan: Lan) -> None:
    lan.cut(0, 2)
    lan.cut(1, 2)
    assert (heard(lan, 0, 2), heard(lan, 1, 2), heard(lan, 2, 0)) == (0, 0, 20)
    lan.mend(0, 2)
    assert (heard(lan, 0, 2), heard(lan, 1, 2)) == (20, 0)


def test_some_packets_are_lost_beside_a_cut(lan: Lan) -> None:
    lan.lose(1, 0.3)
    assert 20 < heard(lan, 0, 1, 100) < 95
    assert 20 < heard(lan, 1, 2, 100) < 95
    lan.cut(0, 1)
    assert heard(lan, 0, 1) == 0
    lan.lose(1, 0)
    lan.mend(0, 1)
    assert heard(lan, 0, 1) == 20


def test_a_slow_link_makes_packets_wait(lan: Lan) -> None:
    assert lan.slow(1, 200) in ("netem", "tbf")
    started = time.monotonic()
    heard(lan, 0, 1, 100)
    # Each waits for netem, or all of them for the bucket; less is not possible.
    assert time.monotonic() - started > 0.04
    lan.slow(1, 0)
    assert heard(lan, 0, 1) == 20
