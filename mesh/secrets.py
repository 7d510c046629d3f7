"""The mesh secret, and the file that holds it: one secret, or two while one takes the place of the other.

A secret file is text: the first line is the secret that this node presents; a second line, there only while the secret
is being rotated, is one that it accepts too, with the word `next` or `former` and the day since when:

    mesh1-aaaa...                        mesh1-bbbb...
    mesh1-bbbb... next 2026-03-01        mesh1-aaaa... former 2026-03-02

Empty lines and what follows `#` mean nothing. Two nodes can link when each accepts what the other presents; so a
rotation in three steps, each taken on every node before the next is begun, never parts two of them:

1. `next` is added everywhere: all present the old secret, some accept the new one too.
2. The two change places everywhere: some present the old, some the new, and all accept both.
3. `former` is removed everywhere: all present the new secret, some still accept the old one.
"""

import base64
import binascii
import datetime
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mesh.errors import SecretError
from mesh.identity import replace_private, require_private, write_private

SECRET_PREFIX = "mesh1-"  # noqa: S105 - names the format, is not a secret
SECRET_BYTES = 32
CHECKSUM_BYTES = 4
_TEXT_LENGTH = len(SECRET_PREFIX) + 58  # 36 bytes in base32 without padding
_FILE_BYTES_MAX = 4096


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

    def text(self) -> str:
        """The form for people and files: `mesh1-` and 58 characters of base32, checksum included."""
        return SECRET_PREFIX + _base32(self.value + _checksum(self.value))

    def save(self, path: Path) -> None:
        """Write a new secret file that holds this one (`Secrets.save`)."""
        Secrets(self).save(path)

    def fingerprint(self) -> str:
        """8 hex digits to compare secrets aloud; reveals nothing of the secret."""
        return hashlib.blake2b(self.value, digest_size=4, person=b"meshnode-shown").hexdigest()

    def __repr__(self) -> str:
        return f"MeshSecret(fingerprint={self.fingerprint()})"


Role = Literal["next", "former"]


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a secret file says. `other` is accepted beside `presented`; `role` and `since` are set with it."""

    presented: MeshSecret
    other: MeshSecret | None = None
    role: Role | None = None
    since: datetime.date | None = None

    @property
    def accepted(self) -> tuple[MeshSecret, ...]:
        """The presented one first."""
        return (self.presented,) if self.other is None else (self.presented, self.other)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of the accepted ones, the presented one first."""
        return tuple(secret.fingerprint() for secret in self.accepted)

    # The three steps of a rotation:

    def with_next(self, new: MeshSecret, today: datetime.date) -> "Secrets":
        assert self.other is None, "a rotation is under way"
        return Secrets(self.presented, new, "next", today)

    def turned(self, today: datetime.date) -> "Secrets":
        assert self.other is not None
        assert self.role == "next"
        return Secrets(self.other, self.presented, "former", today)

    def without_former(self) -> "Secrets":
        assert self.role == "former"
        return Secrets(self.presented)

    @classmethod
    def parse(cls, text: str) -> "Secrets":
        """Error: `secret_malformed`."""
        lines = [line for line in (line.partition("#")[0].split() for line in text.splitlines()) if line]
        if not lines:
            raise _malformed("is empty")
        if len(lines[0]) > 1:
            raise _malformed("stands first, so nothing but the secret belongs on its line")
        presented = MeshSecret.parse(lines[0][0])
        if len(lines) == 1:
            return cls(presented)
        if len(lines) > 2:
            raise _malformed(f"is one of {len(lines)}: at most two are accepted at a time")
        if len(lines[1]) != 3 or lines[1][1] not in ("next", "former"):
            raise _malformed("on the second line needs the word `next` or `former` and a day after it: 2026-03-01")
        other = MeshSecret.parse(lines[1][0])
        if other == presented:
            raise _malformed("stands twice in the file")
        try:
            since = datetime.date.fromisoformat(lines[1][2])
        except ValueError:
            raise _malformed(f"on the second line has {lines[1][2]!r} for a day, not one like 2026-03-01") from None
        return cls(presented, other, "next" if lines[1][1] == "next" else "former", since)

    @classmethod
    def load(cls, path: Path) -> "Secrets":
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

    def text(self) -> str:
        """The content of the file."""
        first = f"{self.presented.text()}\n"
        if self.other is None:
            return first
        return f"{first}{self.other.text()} {self.role} {self.since}\n"

    def save(self, path: Path) -> None:
        """Write a new file of mode 0600. Error: `secret_exists`; a secret in use is never overwritten."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            write_private(path, self.text().encode("ascii"))
        except FileExistsError as error:
            raise SecretError(
                "secret_exists", f"{path} exists already: remove it first to replace the secret"
            ) from error

    def replace(self, path: Path) -> None:
        """Put this in the place of the file's content, whole or not at all. Raises OSError."""
        replace_private(path, self.text().encode("ascii"))

    def __repr__(self) -> str:
        return f"Secrets(fingerprints={self.fingerprints})"


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def _checksum(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=CHECKSUM_BYTES, person=b"meshnode-secret").digest()


def _malformed(why: str) -> SecretError:
    return SecretError("secret_malformed", f"the mesh secret {why}")
