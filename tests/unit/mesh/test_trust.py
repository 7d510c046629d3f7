"""Secrets, identities, certificates."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mesh import trust
from mesh.errors import IdentityError, SecretError
from mesh.identity import Identity, new_instance_id
from mesh.secrets import MeshSecret, Secrets
from mesh.trust import make_trust


def test_a_secret_survives_its_text_and_its_file(tmp_path: Path) -> None:
    secret = MeshSecret.new()
    path = tmp_path / "etc" / "mesh.secret"
    secret.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Secrets.load(path) == Secrets(secret)
    assert MeshSecret.parse(f"  {secret.text().upper()}\n") == secret
    assert secret.text() not in repr(secret)
    with pytest.raises(SecretError, match="exists already"):
        secret.save(path)
    assert [item.name for item in path.parent.iterdir()] == ["mesh.secret"]


def test_every_mistyped_character_is_noticed() -> None:
    text = MeshSecret(bytes(range(32))).text()
    for position in range(len(text)):
        wrong = "a" if text[position] != "a" else "b"
        with pytest.raises(SecretError):
            MeshSecret.parse(text[:position] + wrong + text[position + 1 :])


@pytest.mark.parametrize("text", ["", "mesh1-", "mesh2-" + "a" * 58, "mesh1-" + "1" * 58, "mesh1-" + "a" * 57, "é"])
def test_what_is_no_secret_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(SecretError) as raised:
        MeshSecret.parse(text)
    assert raised.value.code == "secret_malformed"


def test_a_secret_that_others_may_read_is_refused_with_the_repair(tmp_path: Path) -> None:
    path = tmp_path / "mesh.secret"
    MeshSecret.new().save(path)
    path.chmod(0o640)
    with pytest.raises(SecretError, match=f"chmod 600 {path}") as raised:
        Secrets.load(path)
    assert raised.value.code == "secret_readable"
    with pytest.raises(SecretError, match="meshnode secret new"):
        Secrets.load(tmp_path / "missing")
    path.write_bytes(b"\xff")
    path.chmod(0o600)
    with pytest.raises(SecretError, match="not text"):
        Secrets.load(path)


def test_an_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    directory = tmp_path / "identity"
    first = Identity.load_or_create(directory)
    assert Identity.load_or_create(directory).node_id == first.node_id
    assert len(first.node_id) == 26
    assert (directory / "node.key").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert len(new_instance_id()) == 16


def test_an_unusable_identity_is_never_replaced(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path)
    key = tmp_path / "node.key"
    key.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        Identity.load_or_create(tmp_path)
    key.chmod(0o600)
    key.write_text("nonsense")
    with pytest.raises(IdentityError, match="restore it from a backup"):
        Identity.load_or_create(tmp_path)
    assert key.read_text() == "nonsense"


def test_all_holders_of_a_secret_make_the_same_authority() -> None:
    secret = MeshSecret(bytes(32))

    def authority(given: MeshSecret | None) -> bytes:
        return trust._ca_certificate(trust._ca_key(given)).public_bytes(Encoding.DER)

    assert authority(secret) == authority(MeshSecret(bytes(32)))
    assert len({authority(secret), authority(MeshSecret(bytes([1]) * 32)), authority(None)}) == 3


def test_links_are_mutual_tls_1_3() -> None:
    made = make_trust(Identity.generate(), Secrets(MeshSecret.new()), "home", 0.0)
    for context in (made.server, made.client):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
