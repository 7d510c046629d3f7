"""What waits for the thread that owns a replica: inputs posted by any thread, and the streams of peers, which that
thread reads and writes itself.

A stream is a faster way for the same frames: without one they come as posted inputs and leave through the loop. When
one comes or goes, frames may be lost or overtake each other, which is what a link that comes up again means to a
replica: `LinkUp`.
"""

import contextlib
import select
import socket
import time
from collections import deque
from typing import Protocol, TypeAlias

import msgspec

from consensus.limits import INPUTS_PER_STEP_MAX, INPUTS_WAITING_MAX
from consensus.steps import Input, LinkDown, LinkUp, PeerMessage, Propose
from storage.ids import NodeId


class PeerStream(Protocol):
    """A connection to one peer. Nothing blocks; OSError: it is over."""

    def fileno(self) -> int: ...

    @property
    def wants_write(self) -> bool: ...

    def receive(self) -> list[bytes]: ...

    def send(self, payload: bytes) -> bool: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class StreamUp(msgspec.Struct, frozen=True):
    """A stream for the thread to own. It replaces the one it has for the same peer."""

    peer: NodeId
    stream: PeerStream


class _StreamLost(msgspec.Struct, frozen=True):
    """Comes after what was posted before: the link may be known to be down by then."""

    peer: NodeId


class Stop(msgspec.Struct, frozen=True):
    """Ends the thread."""


Posted: TypeAlias = Input | StreamUp | Stop


class Inbox:
    """`post` is for any thread, everything else for one."""

    def __init__(self) -> None:
        self._posted: deque[Posted | _StreamLost] = deque()
        self._is_waiting = False
        self._is_closed = False
        self._poll = select.poll()
        self._streams: dict[NodeId, PeerStream] = {}
        self._peer_at: dict[int, NodeId] = {}
        self._blocked: set[NodeId] = set()
        self.links: set[NodeId] = set()
        """Up now, as told by the inputs taken."""
        self.dropped = 0
        """Messages of peers that were shed because the thread did not keep up."""

    def open(self) -> None:
        """Before the first `take`; inputs may be posted earlier."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._poll.register(self._reader, select.POLLIN)

    def post(self, given: Posted) -> None:
        """Kept in order until `close`, and not afterwards. Never blocks."""
        if type(given) is PeerMessage and len(self._posted) >= INPUTS_WAITING_MAX:
            self.dropped += 1
            return
        self._posted.append(given)
        if self._is_waiting:
            self._is_waiting = False
            with contextlib.suppress(OSError):  # full: it is awake; closed: nobody waits
                self._writer.send(b"\0")
        if self._is_closed:
            self._throw_away()

    def take(self, deadline: float) -> list[Input] | None:
        """What has arrived, at most INPUTS_PER_STEP_MAX posted inputs; waits until `deadline` (monotonic) if nothing
        has. None: stop."""
        inputs: list[Input] = []
        for descriptor, events in self._wait(deadline):
            peer = self._peer_at.get(descriptor)
            if peer is None:
                with contextlib.suppress(BlockingIOError):
                    self._reader.recv(4096)
                continue
            if events & select.POLLOUT:
                self._flush(peer)
            if events & ~select.POLLOUT and peer in self._streams:
                self._receive(peer, inputs)
        posted = self._posted
        for _ in range(min(len(posted), INPUTS_PER_STEP_MAX)):
            given = posted.popleft()
            if type(given) is Propose:  # most are
                inputs.append(given)
                continue
            match given:
                case Stop():
                    return None
                case StreamUp():
                    self._add(given, inputs)
                case _StreamLost(peer):
                    if peer in self.links:
                        inputs.append(LinkUp(peer))
                case LinkUp(peer):
                    self.links.add(peer)
                    inputs.append(given)
                case LinkDown(peer):
                    self.links.discard(peer)
                    self._drop(peer)
                    inputs.append(given)
                case _:
                    inputs.append(given)
        return inputs

    def send(self, frames: list[tuple[NodeId, bytes]]) -> list[tuple[NodeId, bytes]]:
        """Those that no stream took, in order: they are for the link."""
        streams = self._streams
        if not streams:
            return frames
        left = []
        for peer, frame in frames:
            stream = streams.get(peer)
            if stream is None:
                left.append((peer, frame))
                continue
            try:
                stream.send(frame)
            except OSError:
                self._lost(peer)
                left.append((peer, frame))
                continue
            if stream.wants_write and peer not in self._blocked:
                self._blocked.add(peer)
                self._poll.modify(stream.fileno(), select.POLLIN | select.POLLOUT)
        return left

    def close(self) -> None:
        for peer in tuple(self._streams):
            self._drop(peer)
        self._is_closed = True
        self._throw_away()
        self._reader.close()
        self._writer.close()

    def _throw_away(self) -> None:
        """By any thread: what is posted while this inbox closes is seen here or by who posted it."""
        with contextlib.suppress(IndexError):  # empty
            while True:
                given = self._posted.popleft()
                if isinstance(given, StreamUp):
                    given.stream.close()

    def _wait(self, deadline: float) -> list[tuple[int, int]]:
        if self._posted:
            return self._poll.poll(0) if self._streams else []
        self._is_waiting = True
        # Posted between the two lines above: the poster may have seen nobody waiting.
        wait_s = 0.0 if self._posted else max(deadline - time.monotonic(), 0.0)
        ready = self._poll.poll(wait_s * 1000)
        self._is_waiting = False
        return ready

    def _add(self, given: StreamUp, inputs: list[Input]) -> None:
        peer, stream = given.peer, given.stream
        if peer not in self.links:  # it was cut meanwhile
            stream.close()
            return
        self._drop(peer)
        self._streams[peer] = stream
        self._peer_at[stream.fileno()] = peer
        self._poll.register(stream.fileno(), select.POLLIN)
        inputs.append(LinkUp(peer))
        self._receive(peer, inputs)

    def _receive(self, peer: NodeId, inputs: list[Input]) -> None:
        try:
            inputs.extend(PeerMessage(peer, frame) for frame in self._streams[peer].receive())
        except OSError:
            self._lost(peer)

    def _flush(self, peer: NodeId) -> None:
        stream = self._streams[peer]
        try:
            stream.flush()
        except OSError:
            self._lost(peer)
            return
        if not stream.wants_write:
            self._blocked.discard(peer)
            self._poll.modify(stream.fileno(), select.POLLIN)

    def _lost(self, peer: NodeId) -> None:
        self._drop(peer)
        self._posted.append(_StreamLost(peer))

    def _drop(self, peer: NodeId) -> None:
        stream = self._streams.pop(peer, None)
        if stream is not None:
            self._blocked.discard(peer)
            self._poll.unregister(stream.fileno())
            del self._peer_at[stream.fileno()]
            stream.close()
