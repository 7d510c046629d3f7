"""Canonical encoding, and what is refused."""

import math
import os

import msgspec
import pytest

from storage import codec
from storage.errors import CodecError, StorageError


class Point(msgspec.Struct, frozen=True, array_like=True):
    x: int
    tags: dict[str, int] = {}


def test_the_order_of_maps_does_not_matter() -> None:
    assert codec.encode({"b": 1, "a": {"d": 1, "c": 2}}) == codec.encode({"a": {"c": 2, "d": 1}, "b": 1})
    assert codec.encode(Point(1, {"b": 1, "a": 2})) == codec.encode(Point(1, {"a": 2, "b": 1}))


def test_round_trip_and_caps() -> None:
    data = codec.encode(Point(7, {"a": 1}), bytes_max=100)
    assert codec.decode(data, Point, bytes_max=len(data)) == Point(7, {"a": 1})
    assert codec.decoder(Point) is codec.decoder(Point)
    for refuse in (lambda: codec.decode(data, Point, bytes_max=len(data) - 1), lambda: codec.encode("x" * 100, 50)):
        with pytest.raises(CodecError) as caught:
            refuse()
        assert caught.value.code == "too_large"
        assert isinstance(caught.value, StorageError)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xa5ab",
        b"\x91\xa1a",
        b"\x91\x01\x00",
        b"\xa2\xff\xfe",
        b"\x81\x90\x01",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xd7\xff" + b"\xff" * 8,
        codec.encode([1, {"a": "b"}]),
    ],
)
def test_malformed_bytes(data: bytes) -> None:
    with pytest.raises(CodecError) as caught:
        codec.decode(data, Point)
    assert caught.value.code == "malformed"


def test_random_bytes_raise_nothing_else() -> None:
    for kind in (Point, dict, str, msgspec.Raw, object):
        for size in range(60):
            try:
                codec.decode(os.urandom(size), kind)
            except CodecError:
                continue


@pytest.mark.parametrize("value", [object(), 2**70, "\ud800", {1, object()}])
def test_what_cannot_be_encoded(value: object) -> None:
    with pytest.raises(CodecError) as caught:
        codec.encode(value)
    assert caught.value.code == "unsupported"


class Text(str):
    __slots__ = ()


def nested(depth: int) -> object:
    value: object = []
    for _ in range(depth - 1):
        value = [value]
    return value


def cyclic() -> object:
    value: list[object] = []
    value.append(value)
    return value


def wide(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    "value", [None, True, 0, -(2**63), 2**63 - 1, 1.5, -0.0, "", "é\0", [], {}, {"a": [1, {"b": None}]}, nested(8)]
)
def test_json_that_is_accepted(value: object) -> None:
    codec.check_json(value, 1000, 8)
    assert codec.decode(codec.encode(value), object) == value


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (math.nan, "unsupported"),
        (math.inf, "unsupported"),
        (2**63, "unsupported"),
        (-(2**63) - 1, "unsupported"),
        (b"bytes", "unsupported"),
        ((1, 2), "unsupported"),
        ({1: 2}, "unsupported"),
        ({Text("a"): 2}, "unsupported"),
        ([Text("a")], "unsupported"),
        ("\ud800", "unsupported"),
        ({"\ud800": 1}, "unsupported"),
        ([object()], "unsupported"),
        (nested(9), "too_deep"),
        (cyclic(), "too_deep"),
        ("x" * 1000, "too_large"),
        ("é" * 600, "too_large"),
        ([1.5] * 200, "too_large"),
        ([0] * 1001, "too_large"),
        ({"k" * 1000: 1}, "too_large"),
        (wide(8), "too_large"),
    ],
)
def test_json_that_is_refused(value: object, code: str) -> None:
    with pytest.raises(CodecError) as caught:
        codec.check_json(value, 1000, 8)
    assert caught.value.code == code


def test_the_size_limit_is_exact() -> None:
    value = {"a": ["é", 1.5, 300]}
    size = len(codec.encode(value))
    codec.check_json(value, size)
    with pytest.raises(CodecError):
        codec.check_json(value, size - 1)
