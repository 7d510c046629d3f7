"""Keeps a node's trust fresh: takes over a changed secret file, and renews the certificate long before it ends.

What cannot be done is retried, said in the log once, shown in the status, and leaves the trust as it is: a secret file
that is half copied, malformed or readable by others never costs a link. A file is read when it has looked the same
twice, so a copy in progress is not mistaken for the whole.
"""

import asyncio
import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import SecretError
from mesh.identity import Identity
from mesh.limits import (
    CERTIFICATE_WARN_DAYS,
    DAY_S,
    SECRET_WINDOW_DAYS,
    TRUST_LOOK_S,
    TRUST_RETRY_S,
)
from mesh.secrets import Role, Secrets
from mesh.supervise import Logger
from mesh.trust import Trust, make_trust


@dataclass(frozen=True, slots=True)
class TrustStatus:
    """What this node presents and accepts; secrets by fingerprint, times in seconds since 1970."""

    accepted: tuple[str, ...]
    """The presented one first; empty without a secret."""
    role: Role | None
    """What the second one is."""
    second_since: datetime.date | None
    certificate_ends_at: float
    certificate_renews_at: float
    warnings: tuple[str, ...]


Make = Callable[[Identity, Secrets | None, str, float], Trust]


class TrustKeeper:
    """`on_change(trust)` is called on the loop whenever there is a new one. `clock`: seconds since 1970."""

    def __init__(
        self,
        identity: Identity,
        secrets: Secrets | None,
        mesh_name: str,
        file: Path | None,
        clock: Callable[[], float],
        log: Logger,
        make: Make = make_trust,
    ) -> None:
        self.on_change: Callable[[Trust], None] = lambda trust: None
        self._identity = identity
        self._secrets = secrets
        self._mesh_name = mesh_name
        self._file = file
        self._clock = clock
        self._log = log
        self._make = make
        self.trust = make(identity, secrets, mesh_name, clock())
        self._wake = asyncio.Event()
        self._seen: tuple[int, ...] | None = None
        self._read: tuple[int, ...] | None = None
        """The file as it looked last time, and as it looked when it was last read."""
        self._file_problem = self._renewal_problem = ""
        self._retry_at = float("-inf")
        self._days_told = set[int]()
        self._is_window_told = False

    def look_now(self) -> None:
        """Do not wait for the next look."""
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self.look()
            try:
                async with asyncio.timeout(TRUST_LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()
            if self._file is not None:
                self._seen = await asyncio.to_thread(_signature, self._file)  # asked to: what is there is meant

    async def look(self) -> None:
        """One look at file and clock."""
        now = self._clock()
        if self._file is not None:
            signature = await asyncio.to_thread(_signature, self._file)
            if signature == self._seen and signature != self._read:
                self._read = signature
                await self._take_over(self._file, now)
            self._seen = signature
        if self.trust.dates.is_due(now) and now >= self._retry_at:
            await self._renew(self._secrets, now)
        self._warn(now)

    def status(self) -> TrustStatus:
        now, secrets = self._clock(), self._secrets
        warnings = [problem for problem in (self._file_problem, self._renewal_problem) if problem]
        if self._window_is_long(now):
            warnings.append(self._window_text())
        return TrustStatus(
            accepted=self.trust.accepted,
            role=None if secrets is None else secrets.role,
            second_since=None if secrets is None else secrets.since,
            certificate_ends_at=self.trust.dates.ends_at,
            certificate_renews_at=self.trust.dates.renew_at,
            warnings=tuple(warnings),
        )

    async def _take_over(self, file: Path, now: float) -> None:
        try:
            secrets = await asyncio.to_thread(Secrets.load, file)
        except SecretError as error:
            self._file_problem = f"the secret file is not taken over, the secret in use stays: {error}"
            self._log.warning("secret_file_refused", detail=str(error), goes_on_with=list(self.trust.accepted))
            return
        self._file_problem = ""
        if secrets != self._secrets and await self._renew(secrets, now):
            self._secrets = secrets
            self._is_window_told = False
            self._log.info("secret_changed", presents=self.trust.accepted[0], accepts=list(self.trust.accepted))

    async def _renew(self, secrets: Secrets | None, now: float) -> bool:
        try:
            self.trust = await asyncio.to_thread(self._make, self._identity, secrets, self._mesh_name, now)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            self._retry_at = now + TRUST_RETRY_S
            self._read = None
            if not self._renewal_problem:
                self._log.warning("certificate_not_renewed", detail=str(error), goes_on_until=self._end())
            self._renewal_problem = f"the certificate cannot be renewed ({error}); it ends at {self._end()}"
            return False
        self._renewal_problem = ""
        self._retry_at = float("-inf")
        self._days_told.clear()
        self._log.info("certificate_renewed", ends_at=self._end())
        self.on_change(self.trust)
        return True

    def _warn(self, now: float) -> None:
        """Of a certificate that should have been renewed long ago: once at each of the last days that count."""
        left_s = self.trust.dates.ends_at - now
        crossed = {days for days in CERTIFICATE_WARN_DAYS if left_s <= days * DAY_S} - self._days_told
        if crossed:
            self._days_told |= crossed
            self._log.warning(
                "certificate_ends_soon", days_left=max(int(left_s // DAY_S), 0), ends_at=self._end(),
                detail=self._renewal_problem,
            )  # fmt: skip
        if self._window_is_long(now) and not self._is_window_told:
            self._is_window_told = True
            self._log.warning("secret_rotation_unfinished", detail=self._window_text())

    def _window_is_long(self, now: float) -> bool:
        since = None if self._secrets is None else self._secrets.since
        if since is None:
            return False
        return datetime.datetime.fromtimestamp(now, datetime.UTC).date() - since > datetime.timedelta(
            SECRET_WINDOW_DAYS
        )

    def _window_text(self) -> str:
        assert self._secrets is not None
        return (
            f"two mesh secrets have been accepted since {self._secrets.since}, more than {SECRET_WINDOW_DAYS} days: "
            "finish the rotation with `meshnode secret rotate`"
        )

    def _end(self) -> str:
        return datetime.datetime.fromtimestamp(self.trust.dates.ends_at, datetime.UTC).isoformat(timespec="seconds")


def _signature(file: Path) -> tuple[int, ...]:
    """Differs when the file does."""
    try:
        found = os.stat(file)
    except OSError as error:
        return (error.errno or 0,)
    return (found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode, found.st_dev)
