"""The peers of last time, kept in `data_dir/peers`: a mesh comes back after a power cut without multicast or seeds.

Only hints, so a missing or damaged file is no error: it is noted in the diary and replaced.
"""

import contextlib
import os
import secrets
from pathlib import Path

from mesh.limits import ADDRESS_BYTES_MAX, ADDRESSES_PER_PEER_MAX, PEERS_KNOWN_MAX
from mesh.links.book import KnownPeer, decode_peers, encode_peers

FILE = "peers"
_FILE_BYTES_MAX = PEERS_KNOWN_MAX * (ADDRESSES_PER_PEER_MAX * ADDRESS_BYTES_MAX + 512)


def load_peers(data_dir: Path) -> tuple[KnownPeer, ...]:
    """What was saved, or nothing. Blocking, a few kilobytes."""
    try:
        with (data_dir / FILE).open("rb") as file:
            return decode_peers(file.read(_FILE_BYTES_MAX))
    except OSError:
        return ()


def save_peers(data_dir: Path, peers: tuple[KnownPeer, ...]) -> None:
    """Replace the file whole. Blocking: call it off the loop. Not synced: losing it costs a hint."""
    path = data_dir / FILE
    temporary = path.with_name(f".{FILE}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode_peers(peers))
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
