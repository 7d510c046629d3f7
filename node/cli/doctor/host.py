"""What the machine itself offers: a disk that syncs, rights, versions, memory, open files."""

import contextlib
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from node.cli import render
from node.cli.doctor.finding import Finding, Verdict
from node.config import Config, ConfigError, check_files
from node.machine import file_system

SYNC_ROUNDS = 60
SYNC_BYTES = 4096
SYNC_WARN_S, SYNC_FAIL_S = 0.02, 0.2
"""p50 of a synced write: every commit waits for one. 20 ms is a slow hard disk; 200 ms nears election timeouts."""

FREE_WARN_BYTES, FREE_FAIL_BYTES = 2 << 30, 256 << 20
OPEN_FILES_MIN = 1024
RAM_MIN_BYTES = 512 << 20
"""A node at rest takes 70 MB; the rest is for rituals."""


def check_disk(config: Config) -> list[Finding]:
    folder = _existing(config.data_dir)
    try:
        times = sorted(_sync_times(folder))
    except OSError as error:
        return [Finding("disk", "fail", f"{folder}: {error.strerror}", "choose another [node] data_dir")]
    p50, p99 = statistics.median(times), times[int(len(times) * 0.99)]
    verdict: Verdict = "fail" if p50 > SYNC_FAIL_S else "warn" if p50 > SYNC_WARN_S else "ok"
    fix = "put [node] data_dir on a local SSD" if verdict != "ok" else ""
    findings = [
        Finding("disk sync", verdict, f"{folder}: p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms", fix),
    ]
    kind = file_system(folder.resolve())
    if kind in ("tmpfs", "ramfs", "overlay"):
        where = "memory" if kind != "overlay" else "a container's layer"
        findings.append(
            Finding(
                "disk kind", "warn", f"{folder} is in {where} ({kind})", "use a disk or volume that outlives restarts"
            )
        )
    free = shutil.disk_usage(folder).free
    verdict = "fail" if free < FREE_FAIL_BYTES else "warn" if free < FREE_WARN_BYTES else "ok"
    findings.append(
        Finding("disk space", verdict, f"{render.size(free)} free", "" if verdict == "ok" else "free some space")
    )
    return findings


def check_rights(config: Config) -> list[Finding]:
    findings = []
    folder = config.data_dir
    try:
        status = folder.stat()
    except FileNotFoundError:
        parent = _existing(folder)
        if os.access(parent, os.W_OK | os.X_OK):
            findings.append(Finding("data folder", "ok", f"{folder} will be made at first start"))
        else:
            findings.append(
                Finding("data folder", "fail", f"{parent} is not writable", "choose another [node] data_dir")
            )
    except OSError as error:
        findings.append(Finding("data folder", "fail", f"{folder}: {error.strerror}", "choose another [node] data_dir"))
    else:
        if status.st_uid != os.geteuid():
            findings.append(
                Finding("data folder", "fail", f"{folder} belongs to another user", f"chown -R {os.geteuid()} {folder}")
            )
        elif status.st_mode & 0o077:
            findings.append(
                Finding("data folder", "fail", f"{folder} is open to other users", f"chmod -R go= {folder}")
            )
        else:
            findings.append(Finding("data folder", "ok", f"{folder} is private"))
    try:
        check_files(config)
        if config.secret_file is not None:
            from mesh.errors import MeshError
            from mesh.secrets import Secrets

            try:
                secrets = Secrets.load(config.secret_file)
            except MeshError as error:
                findings.append(Finding("secret", "fail", str(error), "copy it again from another node"))
            else:
                shown = f"{config.secret_file}, fingerprint {' and '.join(secrets.fingerprints)}"
                findings.append(Finding("secret", "ok", f"{shown}: must be the same on every machine"))
        else:
            findings.append(Finding("secret", "ok", "none: only this machine can take part"))
    except ConfigError as error:
        findings.append(Finding("secret", "fail", str(error), "make it with meshnode secret new, or copy it here"))
    return findings


def check_software() -> list[Finding]:
    version = platform.python_version()
    findings = [
        Finding("python", "ok", f"{version} at {sys.executable}")
        if sys.version_info >= (3, 11)
        else Finding("python", "fail", version, "install Python 3.11 or newer")
    ]
    try:
        required = importlib.metadata.requires("meshnode") or []
    except importlib.metadata.PackageNotFoundError:
        return [*findings, Finding("libraries", "warn", "meshnode is not installed", "pip install meshnode")]
    versions = []
    for line in required:
        match = re.match(r"([A-Za-z0-9._-]+)[^;]*?>=\s*([0-9.]+)[^;]*$", line)
        if match is None:
            continue
        name, floor = match.groups()
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(f"library {name}", "fail", "is not installed", f"pip install '{line}'"))
            continue
        if _numbers(found) < _numbers(floor):
            findings.append(
                Finding(f"library {name}", "fail", f"{found} is older than {floor}", f"pip install '{line}'")
            )
        versions.append(f"{name} {found}")
    findings.append(Finding("libraries", "ok", ", ".join(versions)))
    return findings


def check_limits(config: Config) -> list[Finding]:
    findings = []
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = (config.slots + 1) * config.execution.memory_mb_max * 1024 * 1024
    if total < RAM_MIN_BYTES:
        findings.append(Finding("ram", "fail", f"{render.size(total)} in all", "a node needs 512 MiB"))
    elif wanted > total:
        findings.append(
            Finding(
                "ram",
                "warn",
                f"{config.slots + 1} workers may take {render.size(wanted)} of {render.size(total)}",
                "lower [execution] slots or memory_mb_max",
            )
        )
    else:
        findings.append(
            Finding("ram", "ok", f"{render.size(total)} in all, workers take {render.size(wanted)} at most")
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_MIN:
        findings.append(Finding("open files", "warn", f"limit {soft}", f"ulimit -n {OPEN_FILES_MIN}"))
    else:
        findings.append(Finding("open files", "ok", f"limit {'none' if soft == resource.RLIM_INFINITY else soft}"))
    return findings


def _sync_times(folder: Path) -> list[float]:
    times = []
    descriptor, name = tempfile.mkstemp(prefix=".meshnode-doctor-", dir=folder)
    try:
        for _ in range(SYNC_ROUNDS):
            start = time.perf_counter()
            os.write(descriptor, b"\0" * SYNC_BYTES)
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - start)
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(name)
    return times


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
