"""Who may come in: the mesh secret, the certificate authority it derives, and the TLS contexts of every link.

Every holder of the secret derives the same CA (HKDF, then a deterministic Ed25519 certificate: same bytes on every
node) and signs a certificate for its own identity key under it. So the secret admits to the mesh, and the identity key
proves which node it is: `peer_node_id` is computed from the key the peer actually presented and proved to hold in the
TLS 1.3 handshake; nothing that a peer merely says is believed. A holder of the secret cannot pass for another node.

While the secret is being rotated two are accepted (`mesh.secrets`): the certificate is issued under the CA of the one
that this node presents, and certificates under either CA are believed.

Certificates live for 90 days and are issued anew every 30, so a stolen identity key is of no use for longer than that
without the secret. They are dated back by 30 days, so that a clock may be wrong by a month. The dates are not checked
by OpenSSL but here, after the TLS handshake: then each side can tell the other in words that a clock is wrong. A link
that is up is never cut for a date; otherwise a clock that jumps would take a node out of the mesh.

Without a secret the CA is derived from a public constant: links are encrypted but anyone may join. The mesh then
refuses to listen on anything but loopback (`mesh.links.listener`).
"""

import contextlib
import datetime
import hashlib
import os
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.errors import HandshakeRefused
from mesh.identity import Identity, node_id_of
from mesh.limits import CERTIFICATE_DATED_BACK_S, CERTIFICATE_LIFE_S, CERTIFICATE_RENEW_S
from mesh.secrets import MeshSecret, Secrets
from mesh.settings import mesh_name_hash
from storage.ids import NodeId

_NOT_BEFORE = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which `ssl` does not name
_HKDF_SALT = b"meshnode"
_HKDF_INFO = b"meshnode/1 mesh CA, Ed25519 seed"
_PUBLIC_SEED = b"meshnode/1 public: no secret set"


@dataclass(frozen=True, slots=True)
class Dates:
    """Of a certificate, in seconds since 1970."""

    starts_at: float
    ends_at: float

    @classmethod
    def issued_at(cls, now: float) -> "Dates":
        """Of one that is issued when the clock says `now`."""
        earliest, latest = _NOT_BEFORE.timestamp(), _NOT_AFTER.timestamp()
        starts_at = min(max(now - CERTIFICATE_DATED_BACK_S, earliest), latest - CERTIFICATE_LIFE_S)
        return cls(float(int(starts_at)), float(int(min(max(now, earliest) + CERTIFICATE_LIFE_S, latest))))

    @property
    def renew_at(self) -> float:
        """When a certificate of ours is to be issued anew."""
        return self.ends_at - CERTIFICATE_LIFE_S + CERTIFICATE_RENEW_S

    def is_due(self, now: float) -> bool:
        """Whether ours should be issued anew: it is old, or the clock has gone back to before it began."""
        return now >= self.renew_at or now < self.starts_at


@dataclass(frozen=True, slots=True)
class Admission:
    """What a peer's certificate says, once TLS has proven it."""

    secret: str
    """Fingerprint of the secret under which it was issued; empty without a secret."""
    dates: Dates


@dataclass(frozen=True, slots=True)
class Trust:
    """The TLS contexts of one node: the same trust for links it accepts and links it dials."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    has_secret: bool
    accepted: tuple[str, ...]
    """Fingerprints of the accepted secrets, the presented one first; none without a secret."""
    dates: Dates
    """Of this node's certificate."""
    issuers: Mapping[x509.Name, str]
    """Subject of a CA -> fingerprint of the secret that it is derived from."""


def make_trust(identity: Identity, secrets: Secrets | None, mesh_name: str, now: float) -> Trust:
    """Derive the CAs, issue this node's certificate in memory, and build both contexts (a few milliseconds). `now`:
    seconds since 1970."""
    accepted: tuple[MeshSecret | None, ...] = (None,) if secrets is None else secrets.accepted
    ca_keys = [_ca_key(secret) for secret in accepted]
    cas = [_ca_certificate(key) for key in ca_keys]
    dates = Dates.issued_at(now)
    leaf = _leaf_certificate(identity, ca_keys[0], cas[0], mesh_name, dates)
    key_pem = identity.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    ca_pem = "".join(ca.public_bytes(Encoding.PEM).decode("ascii") for ca in cas)
    contexts = []
    with _readable_file(leaf.public_bytes(Encoding.PEM) + key_pem) as path:
        for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            context = ssl.SSLContext(protocol)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False  # an id is never an address; `peer_node_id` is the check
            context.verify_mode = ssl.CERT_REQUIRED
            context.verify_flags |= _NO_CHECK_TIME  # `judge_dates` is the check
            context.load_verify_locations(cadata=ca_pem)
            context.load_cert_chain(path)
            if protocol == ssl.PROTOCOL_TLS_SERVER:
                context.num_tickets = 0  # links live long and are never resumed
            contexts.append(context)
    fingerprints = () if secrets is None else secrets.fingerprints
    return Trust(
        server=contexts[0],
        client=contexts[1],
        has_secret=secrets is not None,
        accepted=fingerprints,
        dates=dates,
        issuers={ca.subject: shown for ca, shown in zip(cas, fingerprints or ("",), strict=True)},
    )


def admit(trust: Trust, tls: ssl.SSLObject, now: float) -> Admission:
    """What the certificate says that the peer presented and TLS has verified with `trust`. Errors: `garbage`, and
    `wrong_clock` when `now` (seconds since 1970) is outside its dates."""
    certificate = _peer_certificate(tls)
    dates = Dates(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())
    secret = trust.issuers.get(certificate.issuer)
    if secret is None:
        raise HandshakeRefused("garbage", "the peer's certificate names an issuer that is not one of this mesh")
    if not dates.starts_at <= now <= dates.ends_at:
        raise HandshakeRefused(
            "wrong_clock",
            f"the clock of one of the two nodes is wrong: the certificate of {node_id_of(_key_of(certificate))} is "
            f"good from {_day(dates.starts_at)} to {_day(dates.ends_at)}, but for whoever refuses it is "
            f"{_day(now)}; set the clock that is wrong (for example with NTP), the nodes then link by themselves",
        )
    return Admission(secret, dates)


def peer_node_id(tls: ssl.SSLObject) -> NodeId:
    """The id of the key the peer presented. Error: `garbage` when it is not an Ed25519 certificate."""
    return node_id_of(_key_of(_peer_certificate(tls)))


def _peer_certificate(tls: ssl.SSLObject) -> x509.Certificate:
    der = tls.getpeercert(binary_form=True)
    if der is None:
        raise HandshakeRefused("garbage", "the peer presented no certificate")
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise HandshakeRefused("garbage", f"the peer's certificate cannot be read: {error}") from error


def _key_of(certificate: x509.Certificate) -> Ed25519PublicKey:
    try:
        key = certificate.public_key()
    except ValueError as error:
        raise HandshakeRefused("garbage", f"the peer's certificate cannot be read: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise HandshakeRefused("garbage", "the peer's certificate is not for an Ed25519 key")
    return key


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
    identity: Identity, ca_key: Ed25519PrivateKey, ca: x509.Certificate, mesh_name: str, dates: Dates
) -> x509.Certificate:
    public_key = identity.private_key.public_key()
    uri = f"meshnode://{mesh_name_hash(mesh_name)}/{identity.node_id}"
    return (
        x509.CertificateBuilder()
        .subject_name(_name(f"meshnode {identity.node_id}"))
        .issuer_name(ca.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(dates.starts_at, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(dates.ends_at, datetime.UTC))
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


def _day(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).date().isoformat()
