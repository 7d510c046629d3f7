"""Every parser of the mesh that reads bytes from outside: any bytes give a value or our error, never anything else."""

import contextlib

from hypothesis import example, given
from hypothesis import strategies as st

from mesh.errors import FrameError, SecretError
from mesh.handshake import Hello, Refuse, encode, read_hello, read_refuse
from mesh.links.book import decode_peers, encode_peers, split_address
from mesh.links.frames import FrameParser, Kind, pack, unpack_call, unpack_id, unpack_notice
from mesh.proposals import FoundingRecord, Propose, decode_message, encode_message
from mesh.secrets import MeshSecret, Secrets
from storage.ids import InstanceId, MeshId, NodeId

HELLO = encode(Hello(1, 1, "home", NodeId("n"), InstanceId("i"), "name", "core", ("10.0.0.1:1",)))
RECORD = FoundingRecord("promised", MeshId("m"), (NodeId("a"), NodeId("b")), NodeId("a"), 1, number=1)
PROPOSE = encode_message(Propose(RECORD))
NESTED = b"\x81\xa1x" + b"\x91" * 10_000


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """The message with a few bytes changed, or cut."""
    changes = st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=5)

    def apply(change: tuple[list[tuple[int, int]], int]) -> bytes:
        data = bytearray(good)
        for position, value in change[0]:
            data[position] = value
        return bytes(data[: change[1]])

    return st.tuples(changes, st.integers(0, len(good))).map(apply)


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), max_size=20))
def test_the_frame_parser_never_depends_on_how_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    def parse(pieces: list[bytes]) -> tuple[list[tuple[Kind, bytes]], str | None]:
        parser, frames = FrameParser(100), []
        for piece in pieces:
            try:
                frames += parser.feed(piece)
            except FrameError as error:
                return frames, error.code
            assert len(parser._buffer) <= 104
        return frames, None

    pieces, rest = [], data
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    pieces.append(rest)
    whole, code = parse([data])
    cut_frames, cut_code = parse(pieces)
    assert cut_code == code
    if code is None:
        assert cut_frames == whole


@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=90)), max_size=10), st.integers(1, 40))
def test_what_is_packed_is_parsed(frames: list[tuple[Kind, bytes]], size: int) -> None:
    stream = b"".join(pack(kind, body) for kind, body in frames)
    parser = FrameParser()
    assert [item for at in range(0, len(stream), size) for item in parser.feed(stream[at : at + size])] == frames


@given(st.binary(max_size=600))
def test_frame_bodies(body: bytes) -> None:
    for unpack in (unpack_call, unpack_id, unpack_notice):
        with contextlib.suppress(FrameError):
            unpack(body)


@given(st.binary(max_size=400) | damaged(HELLO))
@example(NESTED)
def test_hellos(body: bytes) -> None:
    assert isinstance(read_hello(body), Hello | Refuse)
    assert isinstance(read_refuse(body), Refuse)


@given(st.binary(max_size=400) | damaged(PROPOSE))
@example(NESTED)
def test_founding_messages(body: bytes) -> None:
    message = decode_message(body)
    assert message is None or decode_message(encode_message(message)) == message


@given(st.binary(max_size=400))
@example(NESTED)
@example(encode_peers([]))
def test_gossip(body: bytes) -> None:
    decode_peers(body)


@given(
    st.text(max_size=80) | st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=58, max_size=58).map("mesh1-".__add__)
)
def test_secrets(text: str) -> None:
    with contextlib.suppress(SecretError):
        assert MeshSecret.parse(text).text() == text.strip().lower()


_SECRET = st.binary(min_size=32, max_size=32).map(lambda value: MeshSecret(value).text())


@given(
    st.lists(
        st.lists(st.text(max_size=20) | _SECRET | st.sampled_from(["next", "former", "2026-03-01", "#"]), max_size=4)
    )
)
def test_secret_files(lines: list[list[str]]) -> None:
    with contextlib.suppress(SecretError):
        read = Secrets.parse("\n".join(" ".join(words) for words in lines))
        assert Secrets.parse(read.text()) == read


@given(st.text(max_size=40))
def test_addresses(text: str) -> None:
    try:
        host, port = split_address(text)
    except ValueError:
        return
    assert host
    assert 0 < port < 65536
