"""The little HTTP of a Leaf: what it reads, what it refuses, and when an answer is whole."""

import pytest

from node.http.guard import Guard
from node.http.problems import Problem
from node.leaf.limits import HEADERS_MAX
from node.leaf.request import Malformed, Passage, read_request


def head(*lines: str) -> bytes:
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def test_a_request_is_read_and_passed_on_without_what_is_between_client_and_leaf() -> None:
    request = read_request(
        head(
            "POST /v1/sessions?wait=1s HTTP/1.1", "Host: here", "Authorization: Bearer x", "Content-Length: 2",
            "Content-Type:application/json", "Idempotency-Key: k ", "Connection: keep-alive",
        )
    )  # fmt: skip
    assert (request.method, request.path, request.query, request.body_bytes) == ("POST", "/v1/sessions", "wait=1s", 2)
    assert request.keeps_open
    assert request.headers.get("IDEMPOTENCY-KEY") == "k"
    passed = request.passed_on(b"{}")
    assert passed.startswith(b"POST /v1/sessions?wait=1s HTTP/1.1\r\nhost: parent\r\ncontent-length: 2\r\n")
    assert passed.endswith(b"\r\n\r\n{}")
    assert b"idempotency-key: k\r\n" in passed
    assert b"authorization" not in passed
    assert b"here" not in passed


@pytest.mark.parametrize(
    ("line", "headers", "keeps_open"),
    [
        ("1.1", [], True),
        ("1.1", ["Connection: close"], False),
        ("1.0", [], False),
        ("1.0", ["Connection: Keep-Alive"], True),
    ],
)
def test_how_long_a_connection_lasts(line: str, headers: list[str], keeps_open: bool) -> None:
    assert read_request(head(f"GET / HTTP/{line}", *headers)).keeps_open is keeps_open


@pytest.mark.parametrize(
    "bad",
    [
        head("GET / HTTP/2"),
        head("get / HTTP/1.1"),
        head("GET http://elsewhere/ HTTP/1.1"),
        head("GET /a b HTTP/1.1"),
        head("GET /a#b HTTP/1.1"),
        head("GET / HTTP/1.1", "Content-Length: 1", "Content-Length: 2"),
        head("GET / HTTP/1.1", "Content-Length: -1"),
        head("GET / HTTP/1.1", "Content-Length: 1, 1"),
        head("GET / HTTP/1.1", "Content-Length: \u00b2"),
        head("POST / HTTP/1.1", "Transfer-Encoding: chunked"),
        head("GET / HTTP/1.1", "Host: a", "Host: b"),
        head("GET / HTTP/1.1", "X : y"),
        head("GET / HTTP/1.1", "X: y", " folded"),
        head("GET / HTTP/1.1", "X: a\nY: b"),
        head("GET / HTTP/1.1", "X: a\x00b"),
        head("GET / HTTP/1.1", *[f"X{i}: y" for i in range(HEADERS_MAX + 1)]),
        b"\r\n\r\n",
    ],
)
def test_what_two_readers_could_read_differently_is_refused(bad: bytes) -> None:
    with pytest.raises(Malformed):
        read_request(bad)


@pytest.mark.parametrize("target", ["/v1/backup", "/v1/%62ackup", "/v1/%62ackup?x=1"])
def test_a_foreign_page_cannot_hide_what_it_asks_for(target: str) -> None:
    request = read_request(head(f"GET {target} HTTP/1.1", "Host: 127.0.0.1:1", "Origin: http://evil"))
    with pytest.raises(Problem) as refused:
        Guard("127.0.0.1", None, allow_unauthenticated=False).check(request)
    assert refused.value.code == "foreign_origin"


ANSWER = head("HTTP/1.1 200 OK", "Content-Length: 5") + b"hello"


@pytest.mark.parametrize("cut", range(1, len(ANSWER)))
def test_an_answer_is_whole_however_it_is_cut(cut: int) -> None:
    passage = Passage("GET")
    first = passage.take(ANSWER[:cut])
    assert not passage.is_whole
    assert first + passage.take(ANSWER[cut:]) == ANSWER
    assert passage.is_whole


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", "Server: x"])
def test_an_answer_without_a_length_ends_with_the_connection_and_says_so(framing: str) -> None:
    passage = Passage("GET")
    body = b"5\r\nhello\r\n0\r\n\r\n"
    assert passage.take(head("HTTP/1.1 200 OK", framing)[:-3]) == b""
    given_on = passage.take(b"\n\r\n" + body)
    assert given_on == head("HTTP/1.1 200 OK", framing, "Connection: close") + body
    assert not passage.is_whole


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ("HEAD", ["HTTP/1.1 200 OK", "Content-Length: 5"]),
        ("HEAD", ["HTTP/1.1 200 OK", "Transfer-Encoding: chunked"]),
        ("GET", ["HTTP/1.1 204 No Content"]),
        ("GET", ["HTTP/1.1 304 Not Modified", "Content-Length: 5"]),
    ],
)
def test_some_answers_have_no_body(method: str, lines: list[str]) -> None:
    passage = Passage(method)
    assert passage.take(head(*lines)) == head(*lines)
    assert passage.is_whole


def test_an_old_client_is_answered_in_its_own_version() -> None:
    assert read_request(head("GET / HTTP/1.0")).passed_on(b"").startswith(b"GET / HTTP/1.0\r\n")


@pytest.mark.parametrize("bad", [b"x" * 20_000, head("nonsense"), head("HTTP/1.1 200 OK", "Content-Length: 1") + b"xx"])
def test_an_answer_that_is_none_breaks_off(bad: bytes) -> None:
    with pytest.raises(Malformed):
        Passage("GET").take(bad)
