"""Is this machine's time usable: set, kept by NTP, in step with other nodes. Raft does not depend on it; leases,
deadlines and the times people read do."""

import ctypes
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPException

from node.cli.doctor.finding import Finding

STEP_PROBE_S = 0.2
STEP_MAX_S = 0.01
"""Wall and monotonic clock may part by this much in the probe; more means that the wall clock is being stepped."""

SKEW_WARN_S = 2.0
"""An HTTP date has a resolution of one second."""

SKEW_FAIL_S = 300.0
"""Leases end by the clock of the node that leads: when leadership moves between such nodes, attempts are given up that
run, or waited for that are lost. Links bear much more (`mesh.limits.CERTIFICATE_DATED_BACK_S`)."""

EARLIEST = 1_735_689_600
"""2025-01-01: a clock before it was never set."""

_STA_UNSYNC = 0x0040  # linux/timex.h


class _Timex(ctypes.Structure):
    """The head of `struct timex`; `tail` is room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("tail", ctypes.c_char * 512),
    )


def check_clock() -> list[Finding]:
    if time.time() < EARLIEST:
        return [Finding("clock", "fail", f"it says {time.strftime('%Y-%m-%d')}", "set it: timedatectl set-ntp true")]
    findings = []
    wall, steady = time.time(), time.monotonic()
    time.sleep(STEP_PROBE_S)
    apart_s = abs((time.time() - wall) - (time.monotonic() - steady))
    if apart_s > STEP_MAX_S:
        findings.append(
            Finding(
                "clock", "warn", f"it moved {apart_s * 1000:.0f} ms on its own", "look for two programs that set it"
            )
        )
    else:
        findings.append(Finding("clock", "ok", "it runs evenly"))
    status = _ntp_status()
    if status is None:
        findings.append(Finding("time service", "warn", "the kernel does not say", "check with timedatectl"))
    elif status & _STA_UNSYNC:
        findings.append(Finding("time service", "warn", "the clock is not kept by NTP", "run timedatectl set-ntp true"))
    else:
        findings.append(Finding("time service", "ok", "the clock is kept by NTP"))
    return findings


def check_skew(dates: dict[str, str | None]) -> list[Finding]:
    """`dates`: URL of a node -> the HTTP date it answered with, None if it did not answer."""
    findings = []
    for url, date in dates.items():
        if date is None:
            continue
        try:
            apart_s = abs(time.time() - parsedate_to_datetime(date).timestamp())
        except (ValueError, HTTPException):
            continue
        check = f"clock of {url}"
        fix = "set both clocks by NTP: timedatectl set-ntp true"
        if apart_s > SKEW_FAIL_S:
            findings.append(Finding(check, "fail", f"{apart_s:.0f} s apart: leases end at the wrong time", fix))
        elif apart_s > SKEW_WARN_S:
            findings.append(Finding(check, "warn", f"{apart_s:.0f} s apart", fix))
        else:
            findings.append(Finding(check, "ok", "in step"))
    return findings


def _ntp_status() -> int | None:
    """The kernel's clock status word; None where it cannot be asked."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        record = _Timex()
        if libc.adjtimex(ctypes.byref(record)) < 0:
            return None
        return int(record.status)
    except (OSError, AttributeError):
        return None
