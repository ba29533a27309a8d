"""A process gives up what it does not need: it can compute, and use the files that it has open.

Standard library only: the process that calls this imports nothing else.
"""

import contextlib
import ctypes
import platform
import resource
import struct

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
# read write close fstat lseek mmap mprotect munmap brk mremap madvise futex getrandom clock_gettime
# rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack exit exit_group
_SYSTEM_CALLS = {
    "x86_64": (
        0xC000003E,
        (0, 1, 3, 5, 8, 9, 10, 11, 12, 25, 28, 202, 318, 228, 13, 14, 15, 131, 60, 231),
    ),
    "aarch64": (
        0xC00000B7,
        (63, 64, 57, 80, 62, 222, 226, 215, 214, 216, 233, 98, 278, 113, 134, 135, 139, 132, 93, 94),
    ),
}
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # the latter fails with EPERM


def confine(*, memory_bytes: int, cpu_seconds: int) -> bool:
    """Give up rights for good: files, processes, the network; memory and time beyond what is stated.

    Returns:
        whether the kernel enforces it for every system call (Linux on x86-64 and ARM); elsewhere limits of
        resources alone hold.
    """
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a lower hard limit is in force, or none can be set
            resource.setrlimit(kind, (limit, limit))
    return _filter_system_calls()


def _filter_system_calls() -> bool:
    if platform.system() != "Linux" or platform.machine() not in _SYSTEM_CALLS:
        return False
    architecture, allowed = _SYSTEM_CALLS[platform.machine()]
    count = len(allowed)
    program = [(_LOAD, 0, 0, 4), (_JUMP_IF_EQUAL, 0, count + 1, architecture), (_LOAD, 0, 0, 0)]
    program += [(_JUMP_IF_EQUAL, count - i, 0, number) for i, number in enumerate(allowed)]
    program += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    return bool(
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
        and libc.prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(header), 0, 0) == 0
    )
