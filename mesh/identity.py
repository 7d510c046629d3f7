"""Who this node is: an Ed25519 key made at first start, and the node id derived from it.

The id is the first 128 bits of the SHA-256 of the raw public key, in lower-case base32 (26 characters): short enough
to read aloud, and nobody can make a second key with the same id (128-bit second preimage). The key file is the node:
whoever copies it makes a clone, which the handshake detects by the instance id (new at every start).
"""

import base64
import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from mesh.errors import IdentityError, MeshError
from storage.ids import InstanceId, NodeId

KEY_FILE = "node.key"
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Identity:
    """The private key and the id that follows from it."""

    node_id: NodeId
    private_key: Ed25519PrivateKey

    def sign(self, content: bytes) -> bytes:
        """Proof that this node made `content`: whoever has it needs no link to it (`is_proven`)."""
        return self.private_key.public_key().public_bytes_raw() + self.private_key.sign(content)

    @classmethod
    def generate(cls) -> "Identity":
        """A new identity that is nowhere on disk."""
        return cls.of(Ed25519PrivateKey.generate())

    @classmethod
    def of(cls, private_key: Ed25519PrivateKey) -> "Identity":
        return cls(node_id_of(private_key.public_key()), private_key)

    @classmethod
    def load_or_create(cls, directory: Path) -> "Identity":
        """The identity kept in `directory` (made, mode 0700, if missing). Blocking: call it before the loop runs.

        Errors: `identity_readable` when others may read the key, `identity_malformed` when it is not our key.
        Never makes a new key in place of one it cannot read: that would turn this node into another one.
        """
        path = directory / KEY_FILE
        with contextlib.suppress(FileNotFoundError):
            return cls._load(path)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with contextlib.suppress(FileExistsError):  # another process was first: take its key
            write_private(path, pem)
        return cls._load(path)

    @classmethod
    def _load(cls, path: Path) -> "Identity":
        require_private(path, IdentityError, "identity_readable")
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise IdentityError(
                "identity_malformed",
                f"{path} is not a private key ({error}): restore it from a backup, "
                "or remove the whole data directory to start as a new node",
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError("identity_malformed", f"{path} is not an Ed25519 key: restore it from a backup")
        return cls.of(key)


def node_id_of(public_key: Ed25519PublicKey) -> NodeId:
    """The id of whoever holds the private half of `public_key`."""
    raw = public_key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return NodeId(base64.b32encode(hashlib.sha256(raw).digest()[:16]).decode("ascii").rstrip("=").lower())


def is_proven(node_id: NodeId, proof: bytes, content: bytes) -> bool:
    """Whether `proof` shows that `content` was made by the node of this id. Takes any bytes."""
    raw, signature = proof[:_KEY_BYTES], proof[_KEY_BYTES:]
    try:
        key = Ed25519PublicKey.from_public_bytes(raw)
        key.verify(signature, content)
    except (ValueError, InvalidSignature):
        return False
    return node_id_of(key) == node_id


def new_instance_id() -> InstanceId:
    """An id for this start of the daemon: 16 hex digits of system randomness."""
    return InstanceId(secrets.token_hex(8))


def require_private(path: Path, error: type[MeshError], code: str) -> None:
    """Refuse a file that its group or the world may touch; the message holds the command that repairs it."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise error(code, f"{path} may be read or written by others (mode {mode:04o}): run `chmod 600 {path}`")


def write_private(path: Path, content: bytes) -> None:
    """Create `path` with mode 0600, whole or not at all, durable on return. FileExistsError if it exists."""
    _put_private(path, content, os.link)  # unlike rename it never replaces a file


def replace_private(path: Path, content: bytes) -> None:
    """The same, in the place of what is there."""
    _put_private(path, content, os.replace)


def _put_private(path: Path, content: bytes, put: Callable[[Path, Path], None]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
