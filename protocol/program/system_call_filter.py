"""The filter of system calls for tools that read foreign images: a BPF program for seccomp(2).

Landlock confines the files that a tool opens. The filter denies the rest that a taken-over tool could use against the
user that it runs as: sockets of all families, processes and their memory, signals, namespaces and mounts, changes of
modes, owners and times (which Landlock doesn't cover), and the kernel's large interfaces. It needs no privilege.

A call is denied with EPERM rather than by killing the tool: a library that only probes for a feature continues
without it.
"""

from __future__ import annotations

import enum
import errno
import platform
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# linux/bpf_common.h, linux/seccomp.h, linux/audit.h
_LOAD_WORD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER_EQUAL: Final = 0x35
_JUMP_SET: Final = 0x45
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000
_NOTIFY: Final = 0x7FC00000
_NUMBER_OFFSET: Final = 0
_ARCHITECTURE_OFFSET: Final = 4
_ARGUMENTS_OFFSET: Final = 16

_X32_BIT: Final = 0x40000000
"""Calls of the x32 ABI have the same architecture, and other numbers."""
_CLONE_THREAD: Final = 0x00010000
_TIOCSTI: Final = 0x5412

_ARCHITECTURES: Final = MappingProxyType({"x86_64": 0xC000003E, "aarch64": 0xC00000B7})

_NONE: Final = -1
"""The architecture doesn't have the call."""

# Name, number on x86_64, number on aarch64: from 424 on they are the same.
_DENIED: Final = (
    # Networks and sockets of other programs.
    ("socket", 41, 198), ("socketpair", 53, 199), ("bind", 49, 200), ("listen", 50, 201), ("accept", 43, 202),
    ("accept4", 288, 242), ("connect", 42, 203),
    # Other processes; io_uring opens sockets and files past this filter.
    ("ptrace", 101, 117), ("process_vm_readv", 310, 270), ("process_vm_writev", 311, 271), ("kcmp", 312, 272),
    ("pidfd_send_signal", 424, 424), ("pidfd_open", 434, 434), ("pidfd_getfd", 438, 438),
    ("process_madvise", 440, 440), ("kill", 62, 129), ("tkill", 200, 130), ("tgkill", 234, 131),
    ("rt_sigqueueinfo", 129, 138), ("rt_tgsigqueueinfo", 297, 240), ("fork", 57, _NONE), ("vfork", 58, _NONE),
    ("execveat", 322, 281), ("io_uring_setup", 425, 425), ("io_uring_enter", 426, 426),
    ("io_uring_register", 427, 427),
    # Memory and messages that are shared by name.
    ("shmget", 29, 194), ("shmat", 30, 196), ("semget", 64, 190), ("msgget", 68, 186), ("mq_open", 240, 180),
    ("add_key", 248, 217), ("request_key", 249, 218), ("keyctl", 250, 219),
    # Namespaces and mounts.
    ("unshare", 272, 97), ("setns", 308, 268), ("mount", 165, 40), ("umount2", 166, 39), ("pivot_root", 155, 41),
    ("chroot", 161, 51), ("open_tree", 428, 428), ("move_mount", 429, 429), ("fsopen", 430, 430),
    ("fsconfig", 431, 431), ("fsmount", 432, 432), ("fspick", 433, 433), ("mount_setattr", 442, 442),
    ("name_to_handle_at", 303, 264), ("open_by_handle_at", 304, 265),
    # Modes, owners, attributes and times, also of files that the tool can't open.
    ("chmod", 90, _NONE), ("fchmod", 91, 52), ("fchmodat", 268, 53), ("fchmodat2", 452, 452), ("chown", 92, _NONE),
    ("fchown", 93, 55), ("lchown", 94, _NONE), ("fchownat", 260, 54), ("setxattr", 188, 5), ("lsetxattr", 189, 6),
    ("fsetxattr", 190, 7), ("removexattr", 197, 14), ("lremovexattr", 198, 15), ("fremovexattr", 199, 16),
    ("setxattrat", 463, 463), ("removexattrat", 466, 466), ("utime", 132, _NONE), ("utimes", 235, _NONE),
    ("futimesat", 261, _NONE), ("utimensat", 280, 88), ("truncate", 76, 45),
    # The kernel's own interfaces.
    ("bpf", 321, 280), ("perf_event_open", 298, 241), ("userfaultfd", 323, 282), ("init_module", 175, 105),
    ("finit_module", 313, 273), ("delete_module", 176, 106), ("kexec_load", 246, 104),
    ("kexec_file_load", 320, 294), ("reboot", 169, 142), ("swapon", 167, 224), ("swapoff", 168, 225),
    ("acct", 163, 89), ("quotactl", 179, 60), ("syslog", 103, 116), ("settimeofday", 164, 170),
    ("clock_settime", 227, 112), ("adjtimex", 159, 171), ("clock_adjtime", 305, 266), ("sethostname", 170, 161),
    ("setdomainname", 171, 162), ("iopl", 172, _NONE), ("ioperm", 173, _NONE), ("personality", 135, 92),
    ("fanotify_init", 300, 262),
)  # fmt: skip
_CLONE: Final = (56, 220)
_CLONE3: Final = 435
_PRLIMIT: Final = (302, 261)
_IOCTL: Final = (16, 29)


_MAP_ANONYMOUS: Final = 0x20
_MMAP_FLAGS_ARGUMENT: Final = 3


class WatchedCall(enum.StrEnum):
    """Calls that a watch of a file sees: every way to read, write or map it, or to learn its holes."""

    READ = "read"
    WRITE = "write"
    PREAD64 = "pread64"
    PWRITE64 = "pwrite64"
    READV = "readv"
    WRITEV = "writev"
    PREADV = "preadv"
    PWRITEV = "pwritev"
    PREADV2 = "preadv2"
    PWRITEV2 = "pwritev2"
    LSEEK = "lseek"
    MMAP = "mmap"
    FALLOCATE = "fallocate"
    FTRUNCATE = "ftruncate"


_WATCHED: Final = MappingProxyType(
    {
        WatchedCall.READ: (0, 63),
        WatchedCall.WRITE: (1, 64),
        WatchedCall.PREAD64: (17, 67),
        WatchedCall.PWRITE64: (18, 68),
        WatchedCall.READV: (19, 65),
        WatchedCall.WRITEV: (20, 66),
        WatchedCall.PREADV: (295, 69),
        WatchedCall.PWRITEV: (296, 70),
        WatchedCall.PREADV2: (327, 286),
        WatchedCall.PWRITEV2: (328, 287),
        WatchedCall.LSEEK: (8, 62),
        WatchedCall.MMAP: (9, 222),
        WatchedCall.FALLOCATE: (285, 47),
        WatchedCall.FTRUNCATE: (77, 46),
    }
)
_COPIES: Final = ((40, 71), (275, 76), (326, 285))
"""sendfile, splice and copy_file_range read one descriptor into another: tools have a read and a write instead."""


def machine_is_supported(machine: str | None = None) -> bool:
    """Return whether this module knows the system calls of ``machine``, by default this machine."""
    return (machine or platform.machine()) in _ARCHITECTURES


def denied_numbers(machine: str) -> Mapping[str, int]:
    """Return the numbers of the calls that are denied whatever their arguments."""
    column = 1 if machine == "x86_64" else 2
    return MappingProxyType({row[0]: int(row[column]) for row in _DENIED if row[column] != _NONE})


def build_filter(machine: str | None = None) -> bytes:
    """Return the BPF program, an array of ``struct sock_filter``, for ``machine``, by default this machine.

    Raises:
        KeyError: the machine isn't supported.
    """
    machine = machine or platform.machine()
    column = 0 if machine == "x86_64" else 1
    program = [
        (_LOAD_WORD, 0, 0, _ARCHITECTURE_OFFSET),
        (_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD_WORD, 0, 0, _NUMBER_OFFSET),
    ]
    if machine == "x86_64":
        program += [(_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for number in denied_numbers(machine).values():
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    # The flags of clone3 are in memory, out of reach; without it the C library uses clone.
    program += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for number, argument, test in (
        (_CLONE[column], 0, (_JUMP_SET, 0, 1, _CLONE_THREAD)),  # threads, but no processes
        (_PRLIMIT[column], 0, (_JUMP_EQUAL, 0, 1, 0)),  # limits of itself only
    ):
        program += [
            (_JUMP_EQUAL, 0, 4, number),
            (_LOAD_WORD, 0, 0, _ARGUMENTS_OFFSET + 8 * argument),
            test,
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        ]
    program += [
        (_JUMP_EQUAL, 0, 4, _IOCTL[column]),
        (_LOAD_WORD, 0, 0, _ARGUMENTS_OFFSET + 8),
        (_JUMP_EQUAL, 0, 1, _TIOCSTI),  # input for the operator's shell
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def watched_numbers(machine: str | None = None) -> Mapping[WatchedCall, int]:
    """Return the numbers of the calls that a watch sees on ``machine``, by default this machine."""
    column = 0 if (machine or platform.machine()) == "x86_64" else 1
    return MappingProxyType({call: numbers[column] for call, numbers in _WATCHED.items()})


def build_watch_filter(machine: str | None = None) -> bytes:
    """Return the BPF program that stops a tool at its accesses to files, for :mod:`protocol.program.file_watch`.

    It is applied beside that of :func:`build_filter`, which checks the architecture and has precedence.
    """
    machine = machine or platform.machine()
    program = [(_LOAD_WORD, 0, 0, _NUMBER_OFFSET)]
    for numbers in _COPIES:
        number = numbers[0 if machine == "x86_64" else 1]
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    watched = dict(watched_numbers(machine))
    memory = watched.pop(WatchedCall.MMAP)
    for number in watched.values():
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOTIFY)]
    program += [
        (_JUMP_EQUAL, 0, 3, memory),
        (_LOAD_WORD, 0, 0, _ARGUMENTS_OFFSET + 8 * _MMAP_FLAGS_ARGUMENT),
        (_JUMP_SET, 1, 0, _MAP_ANONYMOUS),
        (_RETURN, 0, 0, _NOTIFY),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
