"""Confinement of tools that read a filesystem or a partition table: least privilege, limits, an empty environment.

The bytes that these tools parse come from an image, and the tools run as root on a machine that is imaged, or on an
operator's: a flaw in a tool must not reach beyond the filesystem that it reads. Four profiles:

=================  ====================================================================================================
parser             a user of its own without capabilities; everything but one device read-only; no network, no sockets
kernel tool        mount, xfs_growfs, btrfs resize: the kernel reads the filesystem; root, but CAP_SYS_ADMIN only
firmware tool      efibootmgr: root, with the capabilities that firmware variables need
foreign parser     a reader of other programs' images, see :mod:`protocol.program.sandbox`: it opens no file but named
                   ones, starts no process, and has no socket of any family
=================  ====================================================================================================

:mod:`protocol.program.confined_exec` applies them. Without root, a parser keeps the caller's user; Landlock (Linux
5.13) still denies it every change of a file.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from protocol.constants import KIB, MIB
from protocol.program import confined_exec
from protocol.program.system_call_filter import build_filter, build_watch_filter

CONFINED_USER_ID: Final = 65533
"""User and group of parsers: reserved by Debian's policy (9.2.2) and unused by systemd, so that no process of another
purpose has it, as many have ``nobody``."""

OPEN_FILES_MAX: Final = 256
"""Descriptors of one tool: it opens a device, the C library's files and some of /proc."""

MEMORY_BYTES_MIN: Final = 256 * MIB
"""Memory that every tool may use, also on a small machine."""

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Capability(enum.IntEnum):
    """Capabilities that a tool may keep (linux/capability.h)."""

    LINUX_IMMUTABLE = 9
    SYS_RAWIO = 17
    SYS_ADMIN = 21


@dataclasses.dataclass(frozen=True, slots=True)
class ToolDevice:
    """A block device that a tool may open, the only one that it sees."""

    path: str
    """Path below /dev under which the tool finds it."""
    number: int
    """Device number, as ``st_rdev``: the device stays the same if its name changes."""
    writable: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Confinement:
    """The privileges of one tool."""

    devices: tuple[ToolDevice, ...] = ()
    files: tuple[str, ...] = ()
    """Files that the tool opens for writing, if its user may, although it only reads them; paths may be those of
    inherited descriptors. Without a limit of :attr:`file_bytes_max` it could write them."""
    outputs: tuple[str, ...] = ()
    """Files that the tool fills; it may truncate them too."""
    user_id: int | None = CONFINED_USER_ID
    """User and group of the tool; None for the caller's."""
    capabilities: tuple[Capability, ...] = ()
    private_mounts: bool = True
    """Own namespaces in which everything is read-only; False for tools that mount."""
    is_required: bool = True
    """False if the tool also runs where namespaces are forbidden, as in a container."""
    reads: tuple[str, ...] | None = None
    """Files that the tool may read besides its own program and the system's libraries; None for all that its user may.
    With it, Landlock denies every other file, and a filter of system calls the rest."""
    landlock_is_required: bool = False
    """True if the tool must not run where the kernel has no Landlock."""
    process_count_max: int | None = None
    """Most threads of all processes of the tool's user; for a user that nobody else is."""
    memory_bytes_max: int | None = None
    """Most memory; None for :func:`memory_bytes_max`."""
    file_bytes_max: int | None = 0
    """Longest file that it may write; None for a tool that insists on no limit. A block device isn't a file."""
    watch_fd: int | None = None
    """Inherited socket over which the listener of a :class:`protocol.program.file_watch.FileWatch` is passed."""
    sigpipe_ignored: bool = False
    """True for a tool that must finish its work even if its reader was killed."""

    def wrap(self, program: str, argv: Sequence[str], *, time_limit_s: float) -> list[str]:
        """Return the command that starts ``program`` confined.

        Args:
            program: path of the program.
            argv: name and arguments of the program.
            time_limit_s: bounds also the processor time: a tool may outlive the process that would stop it.
        """
        settings = [
            f"memory={self.memory_bytes_max or memory_bytes_max()}",
            f"cpu={math.ceil(max(1.0, time_limit_s)) * (os.cpu_count() or 1)}",
            f"files={OPEN_FILES_MAX}",
            f"required={int(self.is_required)}",
            f"mounts={'private' if self.private_mounts else 'shared'}",
            f"keep={','.join(str(int(kept)) for kept in self.capabilities)}",
            f"sigpipe={'ignored' if self.sigpipe_ignored else 'default'}",
            *(
                f"device={device.path}:{device.number}:{'rw' if device.writable else 'ro'}"
                for device in self.devices
            ),
            *(f"file={path}" for path in self.files),
            *(f"output={path}" for path in self.outputs),
        ]
        if self.file_bytes_max is not None:
            settings.append(f"written={self.file_bytes_max}")
        if self.user_id is not None:
            settings.append(f"user={self.user_id}")
        if self.process_count_max is not None:
            settings.append(f"processes={self.process_count_max}")
        if self.reads is not None:
            settings += ["reads=named", *(f"read={path}" for path in self.reads)]
            settings += [f"landlock={'required' if self.landlock_is_required else 'optional'}"]
            settings += [f"filter={build_filter().hex()}"]
        if self.watch_fd is not None:
            settings += [f"watch={build_watch_filter().hex()}", f"channel={self.watch_fd}"]
        return [sys.executable, "-I", "-S", confined_exec.__file__, *settings, "--", program, *argv]


KERNEL_TOOL: Final = Confinement(
    user_id=None, capabilities=(Capability.SYS_ADMIN,), private_mounts=False, sigpipe_ignored=True
)
"""Profile of tools that ask the kernel for something; they parse no image themselves."""

FIRMWARE_TOOL: Final = Confinement(
    user_id=None,
    capabilities=(Capability.LINUX_IMMUTABLE, Capability.SYS_ADMIN, Capability.SYS_RAWIO),
    private_mounts=False,
    file_bytes_max=64 * KIB,
    sigpipe_ignored=True,
)
"""Profile of efibootmgr: firmware variables are immutable files of some KiB, and old kernels want CAP_SYS_ADMIN to
read them."""


def device_of(path: Path, *, writable: bool = False) -> ToolDevice:
    """Return the block device that ``path`` leads to.

    Raises:
        OSError: there is no such node.
    """
    return ToolDevice(str(path), path.stat().st_rdev, writable)


def memory_bytes_max() -> int:
    """Return the memory that one tool may use: three quarters of the machine's.

    A crafted filesystem may ask for any amount; on a live system in RAM there is no swap to fall back on.
    """
    return max(MEMORY_BYTES_MIN, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4)


ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "PATH": SYSTEM_PATH,
        "LC_ALL": "C",
        "TERM": "dumb",
        "HOME": "/nonexistent",
        "MTOOLSRC": "/dev/null",
        "MTOOLS_SKIP_CHECK": "1",
    }
)
"""The whole environment of tools: the caller's has tokens and passphrases, and settings that change what tools do."""
