"""One TLS connection to one peer: frames in and out, priorities, requests and their answers. A thin shell.

Writing: the first frame of a loop iteration goes to the transport at once (no added latency); frames that follow in
the same iteration, or while bytes are being read, or while the transport is above its high-water mark, wait in the
`Outbox` and go out joined, most urgent first.

Life: made before TLS, `attach()`ed after it, fed one frame to `on_first_frame` (the handshake), `open()`ed, and closed
once. `LinkEvents.link_closed` is called exactly once for a link that was opened.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Protocol

from mesh.errors import FrameError, MeshError, PeerUnavailable, RemoteFailed, RequestTimedOut
from mesh.handshake import Hello, Refuse, StreamHello, encode, read_refuse
from mesh.limits import (
    FRAME_BYTES_MAX,
    HANDSHAKE_FRAME_BYTES_MAX,
    NOTICE_BYTES_MAX,
    REQUESTS_PENDING_MAX,
    REQUESTS_SERVED_BYTES_MAX,
    REQUESTS_SERVED_MAX,
    RETIRE_S,
    WRITE_BUFFER_HIGH_BYTES,
    WRITE_BUFFER_LOW_BYTES,
)
from mesh.links.frames import (
    FrameParser,
    Kind,
    pack,
    pack_call,
    pack_id,
    pack_notice,
    unpack_call,
    unpack_id,
    unpack_notice,
)
from mesh.links.outbox import Outbox, Priority
from mesh.links.stream import Stream
from mesh.links.tls import TlsConnection, TlsUser
from mesh.supervise import Supervisor
from mesh.trust import Admission, Trust
from storage.ids import InstanceId, NodeId

Server = Callable[[NodeId, bytes], Awaitable[bytes]]

_PING = struct.Struct("!d")
_RTT_WEIGHT = 1 / 8  # as TCP's smoothed round-trip time (RFC 6298)
_CLOSE_GRACE_S = 1.0  # to flush a last word to a peer that reads; then the connection is cut
_FLUSH_BYTES = 64 * 1024


class LinkEvents(Protocol):
    """Who a link works for. Called on the loop; must not block; an exception is logged, never kills the link."""

    def on_raft(self, peer: NodeId, payload: bytes) -> None: ...
    def on_notice(self, peer: NodeId, topic: str, payload: bytes) -> None: ...
    def on_peers(self, link: "Link", body: bytes) -> None: ...
    def on_founding(self, link: "Link", body: bytes) -> None: ...
    def server(self, method: str) -> Server | None: ...
    def link_closed(self, link: "Link", reason: str, *, closed_by_peer: bool) -> None: ...
    def link_misbehaved(self, link: "Link", error: FrameError) -> None: ...
    def handler_failed(self, what: str, error: Exception) -> None: ...


class Link(TlsUser):
    """See the module. All methods are for the loop's thread."""

    def __init__(self, events: LinkEvents, tasks: Supervisor, remote: str, *, is_dialled: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._tasks = tasks
        self._parser = FrameParser(HANDSHAKE_FRAME_BYTES_MAX)
        self._outbox = Outbox()
        self._transport: TlsConnection | None = None
        self._is_paused = self._is_corked = self._is_flush_due = False
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._serving_bytes = 0
        self._last_request_id = 0
        self._pong_waiters: list[asyncio.Future[None]] = []
        self._close_reason: str | None = None
        self._cut: asyncio.TimerHandle | None = None
        self.remote = remote
        self.local_host = ""
        self.is_dialled = is_dialled
        self.is_open = False
        self.is_retired = False
        self.hello: Hello | None = None
        self.trust: Trust | None = None
        """Under which this end made the connection."""
        self.admission: Admission | None = None
        """Of the peer."""
        self.first_frame: asyncio.Future[tuple[Kind, bytes]] = self._loop.create_future()
        self.on_first_frame: Callable[[Kind, bytes], None] = self._keep_first_frame
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.opened_at = 0.0
        self.last_heard_at = self._loop.time()
        self.rtt_s: float | None = None
        self.frames_in = self.frames_out = self.bytes_in = self.bytes_out = 0

    @property
    def peer(self) -> NodeId:
        assert self.hello is not None, "only an open link has a peer"
        return self.hello.node_id

    @property
    def peer_instance(self) -> InstanceId:
        assert self.hello is not None, "only an open link has a peer"
        return self.hello.instance_id

    # --- life ---

    def attach(self, connection: TlsConnection) -> None:
        """TLS is done: `connection` carries our frames."""
        self._transport = connection
        connection.set_write_buffer_limits(high=WRITE_BUFFER_HIGH_BYTES, low=WRITE_BUFFER_LOW_BYTES)
        local = connection.get_extra_info("sockname")
        self.local_host = str(local[0]) if local else ""

    def open(self, hello: Hello) -> None:
        """The peer is welcome: it is whom `hello` says."""
        self.hello = hello
        self.is_open = True
        self.opened_at = self._loop.time()
        self._parser.frame_bytes_max = FRAME_BYTES_MAX

    def retire(self) -> None:
        """A better link to the same peer exists: take no new work, let answers arrive, then close."""
        if not self.is_retired:
            self.is_retired = True
            self._cut = self._loop.call_later(RETIRE_S, self.close, "duplicate", Refuse("duplicate", "one link a pair"))

    def close(self, reason: str, word: Refuse | None = None) -> None:
        """Close once what is queued is sent, at most a second later; `word` is told to the peer."""
        if self._transport is None or self.closed.done():
            return
        if self._close_reason is None:
            if word is not None:
                self._send(Priority.CONTROL, pack(Kind.BYE if self.is_open else Kind.REFUSE, encode(word)))
            self._flush()
            self._leave(reason, closed_by_peer=False)

    def abort(self, reason: str) -> None:
        """Cut the connection now: the peer is not reading, or not worth a word."""
        if self._transport is not None and not self.closed.done():
            self._close_reason = self._close_reason or reason
            self._transport.abort()

    # --- sending ---

    def pause_reading(self) -> None:
        """Before `detach`: what arrives from now on is for whoever takes the connection over."""
        if self._transport is not None:
            self._transport.pause_reading()

    def detach(self, early: list[bytes], on_closed: Callable[[], None]) -> Stream:
        """Become a stream: the connection is its owner's, this link is closed without a word. `early` are the payloads
        that have come already. Raises OSError if the connection is not in a state for it."""
        if self._transport is None or self.closed.done():
            raise ConnectionAbortedError("the connection is closed")
        self._transport.pause_reading()
        self._parser.frame_bytes_max = FRAME_BYTES_MAX
        stream = Stream(self._transport, self._parser, early, on_closed)
        self._close_reason = "stream"
        self.closed.set_result(None)
        if not self.first_frame.done():
            self.first_frame.cancel()
        return stream

    def hello_out(self, kind: Kind, hello: Hello | StreamHello) -> None:
        self._send(Priority.CONTROL, pack(kind, encode(hello)))

    def send_control(self, kind: Kind, body: bytes) -> bool:
        """PEERS and FOUNDING frames. A peer that lets a thousand of them pile up is cut off."""
        if self._send(Priority.CONTROL, pack(kind, body)):
            return True
        self.abort("not_reading")
        return False

    def send_raft(self, payload: bytes) -> bool:
        """False: not sent (closed, or too much waiting); Raft will repeat it."""
        return self._send(Priority.RAFT, pack(Kind.RAFT, payload))

    def notify(self, topic: str, payload: bytes) -> bool:
        """False: shed. Error: `oversized_frame` above NOTICE_BYTES_MAX."""
        if len(payload) > NOTICE_BYTES_MAX:
            raise FrameError(
                "oversized_frame", f"a notice of {len(payload)} bytes, at most {NOTICE_BYTES_MAX} are allowed"
            )
        return self._send(Priority.NOTICE, pack_notice(topic.encode("utf-8"), payload))

    async def request(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Ask and wait. Errors: PeerUnavailable, RequestTimedOut, RemoteFailed, FrameError (too large to send)."""
        request_id = self._last_request_id = (self._last_request_id + 1) & 0xFFFF_FFFF
        frame = pack_call(Kind.REQUEST, request_id, method.encode("utf-8"), payload)
        if not self.is_open or self._close_reason is not None:
            raise PeerUnavailable("no_link", f"the link to {self.remote} is closed")
        if len(self._pending) >= REQUESTS_PENDING_MAX or not self._send(Priority.REQUEST, frame):
            raise PeerUnavailable("backlogged", f"too many requests are waiting for {self.peer}: retry later")
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._pending[request_id] = future
        timer = self._loop.call_later(timeout_s, self._expire, request_id, method, timeout_s)
        try:
            return await future
        except asyncio.CancelledError:
            self._send(Priority.REQUEST, pack_id(Kind.CANCEL, request_id, b""))
            raise
        finally:
            timer.cancel()
            self._pending.pop(request_id, None)

    def ping(self) -> None:
        self._send(Priority.CONTROL, pack(Kind.PING, _PING.pack(self._loop.time())))

    async def prove_alive(self, timeout_s: float) -> bool:
        """Whether the peer answers a ping in time. Anything else it says does not count: it may be old."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._pong_waiters.append(waiter)
        self.ping()
        done, _ = await asyncio.wait([waiter, self.closed], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        is_answered = waiter in done and not waiter.cancelled()  # as it is when the link is let go
        waiter.cancel()
        return is_answered and not self.closed.done()

    def counters(self) -> dict[str, int]:
        waiting_frames, waiting_bytes = self._outbox.waiting()
        _, raft, requests, notices = self._outbox.shed
        return {
            "frames_in": self.frames_in,
            "frames_out": self.frames_out,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "frames_waiting": waiting_frames,
            "bytes_waiting": waiting_bytes,
            "raft_dropped": raft,
            "requests_refused": requests,
            "notices_shed": notices,
            "requests_pending": len(self._pending),
            "requests_serving": len(self._serving),
        }

    def _send(self, priority: Priority, frame: bytes) -> bool:
        transport = self._transport
        if transport is None or self._close_reason is not None or self.closed.done():
            return False
        if self._is_paused or self._is_corked or self._is_flush_due:
            return self._outbox.put(priority, frame)
        self.frames_out += 1
        self.bytes_out += len(frame)
        transport.write(frame)
        self._is_flush_due = True
        self._loop.call_soon(self._flush)
        return True

    def _flush(self) -> None:
        self._is_flush_due = False
        transport = self._transport
        while self._outbox and not self._is_paused and transport is not None and not transport.is_closing():
            frames = self._outbox.take(_FLUSH_BYTES)
            data = frames[0] if len(frames) == 1 else b"".join(frames)
            self.frames_out += len(frames)
            self.bytes_out += len(data)
            transport.write(data)

    # --- receiving (asyncio.Protocol) ---

    def data_received(self, data: bytes) -> None:
        self.last_heard_at = self._loop.time()
        self.bytes_in += len(data)
        if self._close_reason is not None:
            return
        try:
            frames = self._parser.feed(data)
            self._is_corked = True
            for kind, body in frames:
                self.frames_in += 1
                if self.is_open:
                    self._dispatch(kind, body)
                else:
                    self.on_first_frame(kind, body)
        except FrameError as error:
            if self.first_frame.done() or self.is_open:
                self._events.link_misbehaved(self, error)
            else:
                self.first_frame.set_exception(error)
                self.first_frame.exception()  # seen, in case nobody waits any more
            self._is_corked = False
            self.close(error.code, Refuse(error.code, str(error)))
        finally:
            self._is_corked = False
            if self._outbox and not self._is_flush_due:
                self._flush()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.closed.done():
            return
        self.closed.set_result(None)
        if self._cut is not None:
            self._cut.cancel()
        reason = self._close_reason
        closed_by_peer = reason is None and (exc is None or isinstance(exc, (ConnectionResetError, BrokenPipeError)))
        reason = reason or ("closed_by_peer" if closed_by_peer else f"lost: {exc}")
        self._stop_work(reason)
        if not self.first_frame.done():
            self.first_frame.set_exception(exc or ConnectionResetError("the peer closed the connection"))
            self.first_frame.exception()  # seen, in case nobody waits any more
        if self.is_open:
            self.is_open = False
            self._events.link_closed(self, reason, closed_by_peer=closed_by_peer)

    def _leave(self, reason: str, *, closed_by_peer: bool) -> None:
        """Decided to close: nothing more goes in or out; what the transport holds is flushed, a second at most."""
        self._close_reason = reason
        self._stop_work(reason)
        transport = self._transport
        if transport is not None:
            transport.close()
            if self._cut is not None:
                self._cut.cancel()
            self._cut = self._loop.call_later(_CLOSE_GRACE_S, transport.abort)
        if self.is_open:
            self.is_open = False
            self._events.link_closed(self, reason, closed_by_peer=closed_by_peer)

    def _keep_first_frame(self, kind: Kind, body: bytes) -> None:
        if self.first_frame.done():
            raise FrameError("garbage", "the peer went on before it was welcome")
        self.first_frame.set_result((kind, body))

    def _dispatch(self, kind: Kind, body: bytes) -> None:
        try:
            match kind:
                case Kind.RAFT:
                    self._events.on_raft(self.peer, body)
                case Kind.REQUEST:
                    self._begin_serving(*unpack_call(body))
                case Kind.RESPONSE:
                    request_id, payload = unpack_id(body)
                    if (future := self._pending.get(request_id)) is not None and not future.done():
                        future.set_result(payload)
                case Kind.FAILURE:
                    request_id, code, payload = unpack_call(body)
                    if (future := self._pending.get(request_id)) is not None and not future.done():
                        future.set_exception(RemoteFailed(code, payload.decode("utf-8", "replace")))
                case Kind.CANCEL:
                    if (task := self._serving.get(unpack_id(body)[0])) is not None:
                        task.cancel()
                case Kind.NOTICE:
                    self._events.on_notice(self.peer, *unpack_notice(body))
                case Kind.PING:
                    self._send(Priority.CONTROL, pack(Kind.PONG, body[:8]))
                case Kind.PONG:
                    self._on_pong(body)
                case Kind.PEERS:
                    self._events.on_peers(self, body)
                case Kind.FOUNDING:
                    self._events.on_founding(self, body)
                case Kind.BYE | Kind.REFUSE:
                    word = read_refuse(body)
                    self._leave(word.code, closed_by_peer=True)
                case Kind.HELLO | Kind.WELCOME | Kind.STREAM:
                    raise FrameError("garbage", "the peer said hello twice")
        except FrameError:
            raise
        except Exception as error:
            self._events.handler_failed(kind.name.lower(), error)

    def _on_pong(self, body: bytes) -> None:
        if len(body) == _PING.size:
            (sent_at,) = _PING.unpack(body)
            rtt_s = self._loop.time() - sent_at
            if 0 <= rtt_s < 60:  # a peer may echo anything
                self.rtt_s = rtt_s if self.rtt_s is None else self.rtt_s + _RTT_WEIGHT * (rtt_s - self.rtt_s)
        for waiter in self._pong_waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._pong_waiters.clear()

    # --- requests ---

    def _begin_serving(self, request_id: int, method: str, payload: bytes) -> None:
        server = self._events.server(method)
        if server is None:
            self._fail(request_id, "unknown_method", f"this node does not serve {method!r}")
        elif self._serving and (
            len(self._serving) >= REQUESTS_SERVED_MAX or self._serving_bytes + len(payload) > REQUESTS_SERVED_BYTES_MAX
        ):
            self._fail(request_id, "busy", f"{len(self._serving)} requests of yours are being served: retry later")
        elif request_id in self._serving:
            raise FrameError("garbage", "the peer used a request id twice")
        else:
            task = self._tasks.spawn(self._serve(server, request_id, method, payload), f"mesh serve {method}")
            if task is not None:
                self._serving[request_id] = task
                self._serving_bytes += len(payload)
                size_bytes = len(payload)

                def end(_: asyncio.Task[None]) -> None:
                    del self._serving[request_id]
                    self._serving_bytes -= size_bytes

                # Not in the coroutine's own `finally`: a task cancelled before its first step never gets there.
                task.add_done_callback(end)

    async def _serve(self, server: Server, request_id: int, method: str, payload: bytes) -> None:
        try:
            answer = await server(self.peer, payload)
            if not self._send(Priority.REQUEST, pack_id(Kind.RESPONSE, request_id, answer)):
                self._fail(request_id, "busy", "the answer was shed: the link is backlogged")
        except Exception as error:
            # Errors of the product carry a stable code and a message that may be shown; others are bugs, logged here.
            code = getattr(error, "code", None)
            if isinstance(code, str):
                self._fail(request_id, code, str(error))
            else:
                self._events.handler_failed(method, error)
                self._fail(request_id, "internal", f"{method} failed on the peer: see its log")

    def _fail(self, request_id: int, code: str, message: str) -> None:
        # Control priority is not needed for order, but a failure must get through when the response queue is full.
        frame = pack_call(Kind.FAILURE, request_id, code.encode("utf-8")[:255], message.encode("utf-8")[:2000])
        self._send(Priority.CONTROL, frame)

    def _expire(self, request_id: int, method: str, timeout_s: float) -> None:
        future = self._pending.get(request_id)
        if future is not None and not future.done():
            future.set_exception(
                RequestTimedOut("timed_out", f"{self.peer} did not answer {method} in {timeout_s:g} s")
            )
            self._send(Priority.REQUEST, pack_id(Kind.CANCEL, request_id, b""))

    def _stop_work(self, reason: str) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(PeerUnavailable("link_lost", f"the link to {self.remote} closed: {reason}"))
        for task in self._serving.values():
            task.cancel()
        for waiter in self._pong_waiters:
            waiter.cancel()


def cause_of(error: BaseException) -> str:
    """A short text for logs: the code and message of ours, the type and message of others."""
    return str(error) if isinstance(error, MeshError) else f"{type(error).__name__}: {error}"
