"""Asks who is there without taking part: connects, sees by TLS which node answers, and hangs up.

For tools that run while the node itself does not. An address is a hint; the key presented in the handshake is proof.
"""

import socket
import ssl
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from mesh.errors import MeshError
from mesh.limits import PROBES_AT_ONCE
from mesh.links.book import split_address
from mesh.trust import peer_node_id
from storage.ids import NodeId

_ROUNDS_MAX = 32
"""Of reading in one handshake, which is a few kilobytes: nobody keeps us busy by dripping."""


def who_answers(addresses: Iterable[str], context: ssl.SSLContext, timeout_s: float) -> dict[NodeId, str]:
    """Nodes of this mesh's secret that answer at these `host:port`, and where. `context` is a client's. Blocks for
    about `timeout_s` for every PROBES_AT_ONCE addresses."""
    asked = list(dict.fromkeys(addresses))
    with ThreadPoolExecutor(PROBES_AT_ONCE, thread_name_prefix="probe") as pool:
        answers = list(pool.map(lambda address: _ask(address, context, timeout_s), asked))
    return {found: address for address, found in zip(asked, answers, strict=True) if found is not None}


def _ask(address: str, context: ssl.SSLContext, timeout_s: float) -> NodeId | None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    try:
        with socket.create_connection(split_address(address), timeout_s) as connection:
            for _ in range(_ROUNDS_MAX):
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    connection.sendall(outgoing.read())
                    data = connection.recv(64 * 1024)
                    if not data:
                        return None
                    incoming.write(data)
                else:
                    connection.sendall(outgoing.read())
                    return peer_node_id(tls)
    except (OSError, ValueError, MeshError):  # SSL errors are OSErrors
        pass
    return None
