"""The relay between daemons of a test: what a mesh does through it is in tests/harness."""

import gc
import socket
import time

from node.testing.relay import Relay


def test_a_connection_that_is_made_while_it_closes_is_closed() -> None:
    """A socket left to the collector would fail whichever test runs then (ResourceWarning)."""
    for round_number in range(60):
        relay = Relay({})
        clients = [socket.socket() for _ in range(3)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(relay.address)
        time.sleep(round_number * 1e-5)  # so that some meet it before, some while they are accepted
        relay.close()
        for client in clients:
            client.close()
    gc.collect()
