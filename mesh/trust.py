"""Who may come in: the mesh secret, the certificate authority it derives, and the TLS contexts of every link.

Every holder of the secret derives the same CA (HKDF, then a deterministic Ed25519 certificate: same bytes on every
node) and signs a certificate for its own identity key under it. So the secret admits to the mesh, and the identity key
proves which node it is: `peer_node_id` is computed from the key the peer actually presented and proved to hold in the
TLS 1.3 handshake; nothing that a peer merely says is believed. A holder of the secret cannot pass for another node.

Certificates do not expire (1970 to 9999, RFC 5280 section 4.1.2.5). Any holder of the secret could issue itself a new
one, so an expiry would keep nobody out; it would only stop meshes whose clocks are wrong, such as boards without a
battery that boot in 1970. A member is removed by changing the secret.

Without a secret the CA is derived from a public constant: links are encrypted but anyone may join. The mesh then
refuses to listen on anything but loopback (`mesh.links.listener`).
"""

import base64
import binascii
import contextlib
import datetime
import hashlib
import hmac
import os
import re
import secrets
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.errors import HandshakeRefused, SecretError
from mesh.identity import Identity, node_id_of, require_private, write_private
from storage.ids import NodeId

SECRET_PREFIX = "mesh1-"  # noqa: S105 - names the format, is not a secret
SECRET_BYTES = 32
CHECKSUM_BYTES = 4
_TEXT_LENGTH = len(SECRET_PREFIX) + 58  # 36 bytes in base32 without padding
_FILE_BYTES_MAX = 4096

_NOT_BEFORE = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_HKDF_SALT = b"meshnode"
_HKDF_INFO = b"meshnode/1 mesh CA, Ed25519 seed"
_PUBLIC_SEED = b"meshnode/1 public: no secret set"


@dataclass(frozen=True, slots=True, repr=False)
class MeshSecret:
    """32 random bytes shared by all nodes of a mesh. Never logged: its `repr` shows a fingerprint only."""

    value: bytes

    @classmethod
    def new(cls) -> "MeshSecret":
        return cls(secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> "MeshSecret":
        """Read what `text()` wrote; case and surrounding white space do not matter. Error: `secret_malformed`."""
        stripped = text.strip().lower()
        if not stripped.startswith(SECRET_PREFIX):
            raise _malformed(f"does not begin with {SECRET_PREFIX}")
        if len(stripped) != _TEXT_LENGTH:
            raise _malformed(
                f"has {len(stripped)} characters instead of {_TEXT_LENGTH}: part of it is missing or added"
            )
        body = stripped.removeprefix(SECRET_PREFIX)
        if not re.fullmatch("[a-z2-7]*", body):
            raise _malformed("holds a character other than a-z and 2-7")
        try:
            data = base64.b32decode(body.upper() + "======")
        except binascii.Error as error:
            raise _malformed("is not base32") from error
        value, checksum = data[:SECRET_BYTES], data[SECRET_BYTES:]
        if not hmac.compare_digest(checksum, _checksum(value)) or _base32(data) != body:
            raise _malformed("has a wrong checksum: a character was mistyped")
        return cls(value)

    @classmethod
    def load(cls, path: Path) -> "MeshSecret":
        """Read a secret file. Errors: `secret_missing`, `secret_readable` (by others), `secret_malformed`."""
        try:
            require_private(path, SecretError, "secret_readable")
            with path.open("rb") as file:
                content = file.read(_FILE_BYTES_MAX)
            return cls.parse(content.decode("ascii"))
        except OSError as error:
            raise SecretError(
                "secret_missing",
                f"cannot read the mesh secret {path} ({error.strerror}): "
                "make one with `meshnode secret new`, or copy the file from another node of the mesh",
            ) from error
        except UnicodeDecodeError as error:
            raise SecretError("secret_malformed", f"{path}: not text; copy the file again from another node") from error
        except SecretError as error:
            if error.code == "secret_malformed":
                raise SecretError(error.code, f"{path}: {error}; copy the file again from another node") from None
            raise

    def save(self, path: Path) -> None:
        """Write a new file of mode 0600. Error: `secret_exists`; a secret in use is never overwritten."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            write_private(path, self.text().encode("ascii") + b"\n")
        except FileExistsError as error:
            raise SecretError(
                "secret_exists", f"{path} exists already: remove it first to replace the secret"
            ) from error

    def text(self) -> str:
        """The form for people and files: `mesh1-` and 58 characters of base32, checksum included."""
        return SECRET_PREFIX + _base32(self.value + _checksum(self.value))

    def fingerprint(self) -> str:
        """8 hex digits to compare secrets aloud; reveals nothing of the secret."""
        return hashlib.blake2b(self.value, digest_size=4, person=b"meshnode-shown").hexdigest()

    def __repr__(self) -> str:
        return f"MeshSecret(fingerprint={self.fingerprint()})"


@dataclass(frozen=True, slots=True)
class Trust:
    """The TLS contexts of one node: the same trust for links it accepts and links it dials."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    has_secret: bool


def make_trust(identity: Identity, secret: MeshSecret | None, mesh_name: str) -> Trust:
    """Derive the CA, issue this node's certificate in memory, and build both contexts (a few milliseconds)."""
    ca_key = _ca_key(secret)
    ca = _ca_certificate(ca_key)
    leaf = _leaf_certificate(identity, ca_key, ca, mesh_name)
    key_pem = identity.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    ca_pem = ca.public_bytes(Encoding.PEM).decode("ascii")
    contexts = []
    with _readable_file(leaf.public_bytes(Encoding.PEM) + key_pem) as path:
        for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            context = ssl.SSLContext(protocol)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False  # an id is never an address; `peer_node_id` is the check
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=ca_pem)
            context.load_cert_chain(path)
            if protocol == ssl.PROTOCOL_TLS_SERVER:
                context.num_tickets = 0  # links live long and are never resumed
            contexts.append(context)
    return Trust(server=contexts[0], client=contexts[1], has_secret=secret is not None)


def peer_node_id(tls: ssl.SSLObject) -> NodeId:
    """The id of the key the peer presented. Error: `garbage` when it is not an Ed25519 certificate."""
    der = tls.getpeercert(binary_form=True)
    if der is None:
        raise HandshakeRefused("garbage", "the peer presented no certificate")
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except ValueError as error:
        raise HandshakeRefused("garbage", f"the peer's certificate cannot be read: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise HandshakeRefused("garbage", "the peer's certificate is not for an Ed25519 key")
    return node_id_of(key)


def mesh_name_hash(mesh_name: str) -> str:
    """16 hex digits that stand for a mesh name where it is seen by everybody (certificates, multicast)."""
    return hashlib.blake2b(mesh_name.encode("utf-8"), digest_size=8, person=b"meshnode-name").hexdigest()


def _ca_key(secret: MeshSecret | None) -> Ed25519PrivateKey:
    if secret is None:
        return Ed25519PrivateKey.from_private_bytes(_PUBLIC_SEED)
    seed = HKDF(algorithm=hashes.SHA256(), length=32, salt=_HKDF_SALT, info=_HKDF_INFO).derive(secret.value)
    return Ed25519PrivateKey.from_private_bytes(seed)


def _ca_certificate(key: Ed25519PrivateKey) -> x509.Certificate:
    """Deterministic: fixed dates, serial from the key, and Ed25519 signatures have no randomness (RFC 8032)."""
    fingerprint = hashlib.sha256(key.public_key().public_bytes_raw()).digest()
    name = _name(f"meshnode mesh CA {fingerprint[:8].hex()}")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(fingerprint[8:24], "big") >> 1 | 1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, algorithm=None)
    )


def _leaf_certificate(
    identity: Identity, ca_key: Ed25519PrivateKey, ca: x509.Certificate, mesh_name: str
) -> x509.Certificate:
    public_key = identity.private_key.public_key()
    uri = f"meshnode://{mesh_name_hash(mesh_name)}/{identity.node_id}"
    return (
        x509.CertificateBuilder()
        .subject_name(_name(f"meshnode {identity.node_id}"))
        .issuer_name(ca.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, algorithm=None)
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@contextlib.contextmanager
def _readable_file(content: bytes) -> Iterator[str]:
    """OpenSSL reads keys from files only: one in memory where Linux offers it, so that no second copy of the identity
    key ever reaches a disk; elsewhere a temporary file of mode 0600."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("meshnode-link-certificate", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.name


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def _checksum(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=CHECKSUM_BYTES, person=b"meshnode-secret").digest()


def _malformed(why: str) -> SecretError:
    return SecretError("secret_malformed", f"the mesh secret {why}")
