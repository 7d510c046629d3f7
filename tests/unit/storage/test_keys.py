"""Keys that sort like what they stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.keys import from_u64, prefix_end, u64

numbers = st.integers(0, 2**64 - 1)


@given(numbers, numbers)
def test_numbers_sort_as_their_keys(one: int, other: int) -> None:
    assert (one < other) == (u64(one) < u64(other))
    assert from_u64(u64(one)) == one


@pytest.mark.parametrize("number", [-1, 2**64])
def test_what_does_not_fit_is_an_error(number: int) -> None:
    with pytest.raises(OverflowError):
        u64(number)


@given(st.binary(max_size=4), st.binary(max_size=4), st.binary(max_size=4))
def test_a_prefix_ends_after_everything_that_begins_with_it(prefix: bytes, rest: bytes, other: bytes) -> None:
    end = prefix_end(prefix)
    assert end is None or prefix + rest < end
    if end is not None and prefix <= other < end:
        assert other.startswith(prefix)
    if end is None:
        assert prefix.strip(b"\xff") == b""
