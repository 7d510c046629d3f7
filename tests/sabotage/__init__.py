"""Makes the kernel refuse what a disk would refuse: system calls of this process fail with the error one chooses.

By seccomp, so it needs no compiler, no device and no hook in the product: LMDB itself meets the error where a real
disk would give it. For ever, for this process and what it starts; so only in a process of its own. Linux on x86-64 and
arm64.
"""

import ctypes
import errno
import platform

CALLS = {
    "x86_64": {"fsync": 74, "fdatasync": 75, "pwrite64": 18, "writev": 20, "pwritev": 296, "seccomp": 317},
    "aarch64": {"fsync": 82, "fdatasync": 83, "pwrite64": 68, "writev": 66, "pwritev": 70, "seccomp": 277},
}
SYNC = ("fsync", "fdatasync")
WRITE = ("pwrite64", "pwritev", "writev")
"""With which LMDB writes files, and nobody in the product sockets."""
META = ("pwrite64",)
"""With which LMDB writes the meta page; others too, unless several lie side by side."""

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _FLAG_ALL_THREADS = 1, 1
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def is_possible() -> bool:
    return platform.system() == "Linux" and platform.machine() in CALLS


def refuse(names: tuple[str, ...], code: int = errno.EIO) -> None:
    """From now on these calls fail on every thread. OSError if the kernel does not allow the filter."""
    calls = CALLS[platform.machine()]
    count = len(names)
    program = [(_LOAD, 0, 0, 0)]
    program += [(_JUMP_IF_EQUAL, count - at, 0, calls[name]) for at, name in enumerate(names)]
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERROR | code)]
    instructions = (_Instruction * len(program))(*(_Instruction(*step) for step in program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    given = _Program(len(program), instructions)
    if libc.syscall(calls["seccomp"], _SET_MODE_FILTER, _FLAG_ALL_THREADS, ctypes.byref(given)) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
