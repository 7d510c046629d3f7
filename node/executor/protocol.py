"""What daemon and worker say to each other, and how it is framed.

A frame is a 4-byte big-endian length and one MessagePack array of messages; a message is an array whose first element
is its tag. Everything said during one iteration of an event loop shares a frame, which is what makes short rituals
cheap. Shared by both sides, hence without dependencies: the daemon encodes with msgspec, the worker with msgpack.
"""

from node.executor.limits import BATCH_BYTES_SOFT, FRAME_BYTES_MAX

# daemon to worker
HELLO = 1  # [HELLO, options]
RUN = 2  # [RUN, key, ritual, session_id, branch_index, attempt, task, parameters, thought, seed, has_inputs, trimmed]
INPUTS = 3  # [INPUTS, key, [branch input, ...]]   before the RUN they belong to
CANCEL = 4  # [CANCEL, key]                        async workers only; CPU workers are killed
SEEN_REPLY = 5  # [SEEN_REPLY, key, number, {phrase: count}]

# worker to daemon
READY = 11  # [READY, pid]
DONE = 12  # [DONE, key, duration_ms, ritual_version, knowledge]   knowledge: MessagePack bytes in the order of the row
FAILED = 13  # [FAILED, key, duration_ms, ritual_version, code, message]
LIVE = 14  # [LIVE, key, fraction | None, message, [line, ...]]
SEEN = 15  # [SEEN, key, number, [phrase, ...]]

LENGTH_BYTES = 4

_SHAPES: dict[object, tuple[type | tuple[type, ...], ...]] = {
    READY: (int, int),
    DONE: (int, int, int, str, bytes),
    FAILED: (int, int, int, str, str, str),
    LIVE: (int, int, (float, type(None)), str, list),
    SEEN: (int, int, int, list),
}


class NotAFrame(ValueError):
    """The stream does not hold frames; the connection is of no further use."""


class FrameBuffer:
    """Cuts a byte stream into the payloads of its frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads completed by `data`, in order. NotAFrame if a length is impossible."""
        buffer = self._data
        buffer += data
        payloads: list[bytes] = []
        start = 0
        available = len(buffer)
        while available - start >= LENGTH_BYTES:
            length = int.from_bytes(buffer[start : start + LENGTH_BYTES], "big")
            if not 0 < length <= FRAME_BYTES_MAX:
                raise NotAFrame(f"frame of {length} bytes announced, allowed are 1 to {FRAME_BYTES_MAX}")
            end = start + LENGTH_BYTES + length
            if available < end:
                break
            payloads.append(bytes(buffer[start + LENGTH_BYTES : end]))
            start = end
        if start:
            del buffer[:start]
        return payloads


def check_from_worker(message: list[object]) -> None:
    """NotAFrame if no worker of ours would send this. Code of a ritual can write into its worker's socket."""
    shape = _SHAPES.get(message[0]) if message and isinstance(message[0], int) else None
    if (
        shape is None
        or len(shape) != len(message)
        or not all(map(isinstance, message, shape))
        or (isinstance(message[-1], list) and not all(isinstance(item, str) for item in message[-1]))
    ):
        raise NotAFrame("a message of unknown shape")


def frame(payload: bytes) -> bytes:
    """`payload` with its length in front."""
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def frames(messages: list[bytes]) -> bytes:
    """Encoded messages as frames of about `BATCH_BYTES_SOFT` bytes each."""
    framed: list[bytes] = []
    start = size = 0
    for end, message in enumerate(messages, 1):
        size += len(message)
        if size >= BATCH_BYTES_SOFT or end == len(messages):
            header = b"\xdd" + (end - start).to_bytes(4, "big")  # MessagePack: array 32
            framed.append(frame(header + b"".join(messages[start:end])))
            start, size = end, 0
    return b"".join(framed)
