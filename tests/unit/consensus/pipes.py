"""Streams between two threads of a test, without TLS."""

import socket


class PipeStream:
    """Four bytes of length, then the payload. `is_stuck`: the socket takes nothing."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.end = end
        self.is_closed = False
        self.is_stuck = False
        self.unsent = bytearray()
        self.arrived = bytearray()

    def fileno(self) -> int:
        return self.end.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self.unsent)

    def receive(self) -> list[bytes]:
        try:
            data = self.end.recv(1 << 20)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError
        self.arrived += data
        payloads = []
        while len(self.arrived) >= 4:
            length = int.from_bytes(self.arrived[:4], "big")
            if len(self.arrived) < 4 + length:
                break
            payloads.append(bytes(self.arrived[4 : 4 + length]))
            del self.arrived[: 4 + length]
        return payloads

    def send(self, payload: bytes) -> bool:
        self.unsent += len(payload).to_bytes(4, "big") + payload
        self.flush()
        return True

    def flush(self) -> None:
        while self.unsent and not self.is_stuck:
            try:
                del self.unsent[: self.end.send(self.unsent)]
            except BlockingIOError:
                return

    def close(self) -> None:
        self.is_closed = True
        self.end.close()


_made: list[socket.socket] = []


def pipe() -> tuple[PipeStream, PipeStream]:
    ours, theirs = socket.socketpair()
    _made.extend((ours, theirs))
    return PipeStream(ours), PipeStream(theirs)


def close_pipes() -> None:
    """The ends that nobody closed."""
    while _made:
        _made.pop().close()
