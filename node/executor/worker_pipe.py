"""Whole messages over a blocking socket: how a worker hears its first words, and a CPU worker all of them."""

from __future__ import annotations

import socket
import threading
from typing import Any

from node.executor import protocol
from node.executor.packing import pack, unpack_messages


class BlockingPipe:
    """Whole messages over the socket, for a worker without an event loop. Sending is safe from any thread."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._frames = protocol.FrameBuffer()
        self._received: list[list[Any]] = []
        self._lock = threading.Lock()

    def send(self, messages: list[list[Any]]) -> None:
        data = protocol.frame(pack(messages))
        with self._lock:
            self._channel.sendall(data)

    def receive(self) -> list[Any] | None:
        """The next message; None when the daemon has closed the socket."""
        while not self._received:
            data = self._channel.recv(1 << 18)
            if not data:
                return None
            for payload in self._frames.feed(data):
                self._received.extend(unpack_messages(payload))
        return self._received.pop(0)

    def left_over(self) -> list[list[Any]]:
        """Messages that were received together with the last one and not yet taken."""
        taken, self._received = self._received, []
        return taken
