"""What a session may show its clients, and what it may not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.torture.linearizability import Operation, check
from tests.torture.session_model import Absent, Cancel, Conflict, Created, Exists, Read, Seen, SessionModel, Submit
from tests.unit.torture.histories import Row, history, is_linearizable_by_force

A, B = Submit("a"), Submit("b")
NEW = (0, 1, A, Created(5))


def seen(rev: int, status: str = "open", body: str = "a") -> Seen:
    return Seen(body, rev, status)


GOOD = {
    "life of a session": [
        (0, 1, Read(), Absent()), (1, 2, A, Created(5)), (3, 4, Read(), seen(5)), (5, 6, Read(), seen(7)),
        (7, 8, Read(), seen(9, "completed")), (9, 10, Read(), seen(9, "completed")),
    ],
    "repeated and refused": [NEW, (2, 3, A, Exists()), (2, 3, B, Conflict()), (4, 5, Read(), seen(5))],
    "cancelled": [NEW, (2, 3, Cancel(), seen(6, "cancelled")), (4, 5, Read(), seen(6, "cancelled"))],
    "cancelled too late": [NEW, (2, 3, Cancel(), seen(8, "completed")), (4, 5, Read(), seen(8, "completed"))],
    "cancelled twice": [NEW, (2, 5, Cancel(), seen(6, "cancelled")), (3, 4, Cancel(), seen(6, "cancelled"))],
    "an unknown submission is there": [(0, None, A, None), (2, 3, Read(), seen(9)), (4, 5, B, Conflict())],
    "an unknown submission is not there": [(0, None, A, None), (2, 3, Read(), Absent()), (4, 5, B, Created(9))],
    "an unknown submission came late": [(0, None, A, None), (2, 3, Read(), Absent()), (4, 5, Read(), seen(9))],
    "its repetition finds it": [(0, None, A, None), (2, 3, A, Exists()), (4, 5, Read(), seen(9))],
    "found by its own repetition inside the mesh": [(0, 1, A, Exists()), (2, 3, Read(), seen(9))],
    "an unknown cancellation came late": [
        NEW, (2, None, Cancel(), None), (3, 4, Read(), seen(6)), (5, 6, Read(), seen(7, "cancelled")),
    ],
    "an unknown cancellation came too late": [NEW, (2, None, Cancel(), None), (3, 4, Read(), seen(6, "completed"))],
    "nothing to cancel": [(0, 1, Cancel(), Absent())],
}  # fmt: skip

BAD = {
    "acknowledged and gone": [NEW, (2, 3, Read(), Absent())],
    "created twice": [NEW, (2, 3, A, Created(9))],
    "created over another": [NEW, (2, 3, B, Created(9))],
    "both won": [(0, 5, A, Created(5)), (0, 5, B, Created(6))],
    "another body than was accepted": [NEW, (2, 3, Read(), seen(5, body="b"))],
    "refused by nobody": [(0, 1, B, Conflict()), (2, 3, Read(), Absent())],
    "stale read": [NEW, (2, 3, Read(), seen(9)), (4, 5, Read(), seen(7))],
    "one rev, two faces": [NEW, (2, 3, Read(), seen(9)), (4, 5, Read(), seen(9, "completed"))],
    "the end is not the end": [NEW, (2, 3, Read(), seen(9, "completed")), (4, 5, Read(), seen(10))],
    "the end changes": [NEW, (2, 3, Read(), seen(9, "completed")), (4, 5, Read(), seen(10, "failed"))],
    "final and written again": [NEW, (2, 3, Read(), seen(9, "completed")), (4, 5, Read(), seen(10, "completed"))],
    "cancelled and goes on": [NEW, (2, 3, Cancel(), seen(6, "cancelled")), (4, 5, Read(), seen(7))],
    "cancelled and completed": [NEW, (2, 3, Cancel(), seen(6, "cancelled")), (4, 5, Read(), seen(7, "completed"))],
    "cancelled by nobody": [NEW, (2, 3, Read(), seen(6, "cancelled"))],
    "cancelled and still open": [NEW, (2, 3, Cancel(), seen(6))],
    "seen before it was submitted": [(0, 1, Read(), seen(5)), (2, None, A, None)],
    "acknowledged and not to be cancelled": [NEW, (2, 3, Cancel(), Absent())],
}  # fmt: skip


@pytest.mark.parametrize("rows", GOOD.values(), ids=GOOD.keys())
def test_good(rows: list[Row]) -> None:
    assert check(SessionModel(), history(*rows)).word == "linearizable"


@pytest.mark.parametrize("rows", BAD.values(), ids=BAD.keys())
def test_bad(rows: list[Row]) -> None:
    assert check(SessionModel(), history(*rows)).word == "violated"


ANSWERS = st.one_of(
    st.tuples(
        st.sampled_from([A, B]),
        st.one_of(st.builds(Created, st.integers(1, 3)), st.just(Exists()), st.just(Conflict())),
    ),
    st.tuples(
        st.just(Read()),
        st.one_of(
            st.just(Absent()),
            st.builds(
                Seen,
                st.sampled_from("ab"),
                st.integers(1, 4),
                st.sampled_from(["open", "completed", "cancelled"]),
            ),
        ),
    ),
    st.tuples(
        st.just(Cancel()),
        st.builds(Seen, st.sampled_from("ab"), st.integers(2, 4), st.sampled_from(["completed", "cancelled"])),
    ),
)


@st.composite
def any_operation(draw: st.DrawFn) -> Operation:
    given_, answer = draw(ANSWERS)
    call = draw(st.integers(0, 6))
    if not isinstance(given_, Read) and draw(st.integers(0, 3)) == 0:
        return Operation("x", call, None, given_, None)
    return Operation("x", call, call + draw(st.integers(0, 3)), given_, answer)


@settings(max_examples=400, deadline=None)
@given(st.lists(any_operation(), max_size=5))
def test_the_verdict_is_that_of_trying_everything(operations: list[Operation]) -> None:
    verdict = check(SessionModel(), operations)
    assert verdict.word == ("linearizable" if is_linearizable_by_force(SessionModel(), operations) else "violated")
