"""Growing a filesystem to the end of its partition with its own tools, and checking it before and after.

Each kind has three steps, each on a new loop device, so that no step sees another's cached data instead of the disk:

=======  =======================  =============================  ==========================
kind     before, nothing grown    growing                        after
=======  =======================  =============================  ==========================
ext2-4   e2fsck -f -p             resize2fs                      e2fsck -f -n
XFS      xfs_repair -n            mounted, xfs_growfs            xfs_repair -n
btrfs    btrfs check --readonly   mounted, filesystem resize     btrfs check --readonly
NTFS     ntfsresize --no-action   ntfsresize                     ntfsresize --info
=======  =======================  =============================  ==========================

The tools are confined (:mod:`protocol.program.confinement`), because the image may be hostile. XFS and btrfs grow only
while they are mounted, so the kernel reads them, but only after their own check, and XFS without a log to replay.
Thanks to their journal or copy on write, both have either the old or the new size after a power cut. resize2fs and
ntfsresize have no such protection: a power cut or a kill may damage the filesystem. The fix is to run the same command
again: blocks that differ from the image are written again, and the filesystem is grown again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from protocol.constants import MIB
from protocol.disk.disk_reads import Read
from protocol.program.confinement import KERNEL_TOOL
from protocol.shared.units import format_bytes
from receiver.disk.fit.mount import mounted_privately
from receiver.disk.fit.programs import (
    FILESYSTEM_TIME_LIMIT_S,
    MOUNT_TIME_LIMIT_S,
    StepError,
    parser_of,
    run_program,
)

SLACK_BYTES: Final = 16 * MIB
"""Space that a grown filesystem may leave at the end of its partition: ext skips a last group that is too small for its
tables, XFS a group of less than 64 blocks."""

_E2FSCK_CORRECTED: Final = (0, 1, 2)
"""Exit codes of success: 0 clean, 1 corrected, 2 corrected and, if mounted, in need of a reboot (e2fsck(8))."""
_BTRFS_DEVICE: Final = re.compile(r"devid\s+(\d+)\s+size")


@dataclasses.dataclass(frozen=True, slots=True)
class Grower:
    """The tools and steps that grow one kind of filesystem."""

    programs: tuple[str, ...]
    before: Callable[[Path], None]
    grow: Callable[[Path], None]
    after: Callable[[Path], None]
    driver: str = ""
    """The kernel driver, if the filesystem must be mounted."""


def _parse(device: Path, *argv: str, writable: bool = False, success_codes: tuple[int, ...] = (0,)) -> str:
    """Run a tool that reads the filesystem on ``device`` itself, the last argument."""
    return run_program(
        [*argv, device],
        confinement=parser_of(device, writable=writable),
        time_limit_s=FILESYSTEM_TIME_LIMIT_S,
        success_codes=success_codes,
    )


def _ask_kernel(*argv: str | Path) -> str:
    """Run a tool that asks the kernel to change a mounted filesystem."""
    return run_program(argv, confinement=KERNEL_TOOL, time_limit_s=FILESYSTEM_TIME_LIMIT_S)


def _before_ext(device: Path) -> None:
    _parse(device, "e2fsck", "-f", "-p", writable=True, success_codes=_E2FSCK_CORRECTED)


def _grow_ext(device: Path) -> None:
    _parse(device, "resize2fs", writable=True)


def _after_ext(device: Path) -> None:
    _parse(device, "e2fsck", "-f", "-n")


def _before_xfs(device: Path) -> None:
    # The kernel would replay the log at the mount, before any check of the filesystem.
    state = _parse(device, "xfs_logprint", "-t", writable=True)  # it only reads, but opens for writing
    if "<CLEAN>" not in state:
        raise StepError(
            "its log has changes to replay: mount and unmount the golden disk's filesystem, pack it again, or run "
            "without --grow"
        )
    _check_xfs(device)


def _grow_xfs(device: Path) -> None:
    # XFS refuses to mount a second filesystem with the same UUID, and another disk of this image may be mounted.
    with mounted_privately(device, "xfs", "nouuid") as point:
        _ask_kernel("xfs_growfs", "-d", point)


def _check_xfs(device: Path) -> None:
    # It refuses to run with a limit of its files, even if it writes none.
    confinement = dataclasses.replace(parser_of(device), file_bytes_max=None)
    run_program(["xfs_repair", "-n", device], confinement=confinement, time_limit_s=FILESYSTEM_TIME_LIMIT_S)


def _grow_btrfs(device: Path) -> None:
    try:
        with mounted_privately(device, "btrfs") as point:
            members = _BTRFS_DEVICE.findall(_ask_kernel("btrfs", "filesystem", "show", point))
            if len(members) != 1:
                raise StepError(f"this btrfs has {len(members)} devices; one is expected")
            _ask_kernel("btrfs", "filesystem", "resize", f"{members[0]}:max", point)
    finally:
        # The kernel remembers where it saw a filesystem, and would search for this one on the loop device.
        forget_btrfs(device)


def forget_btrfs(*devices: Path) -> None:
    """Make the kernel forget that it saw btrfs on these devices.

    It prefers the copy with the higher generation: an older one, if the same image was on this disk before and has been
    used since.
    """
    for device in devices:
        with contextlib.suppress(StepError):  # the command fails if the kernel saw no btrfs there
            run_program(
                ["btrfs", "device", "scan", "--forget", device],
                confinement=KERNEL_TOOL,
                time_limit_s=MOUNT_TIME_LIMIT_S,
            )


def nodes_of_disk(number: int) -> list[Path]:
    """Return the device nodes of a block device and of its partitions as the kernel last read them."""
    directory = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    names = [directory.resolve().name, *(path.parent.name for path in directory.glob("*/partition"))]
    return [Path("/dev", name.replace("!", "/")) for name in names]


def _check_btrfs(device: Path) -> None:
    _parse(device, "btrfs", "check", "--readonly")


_NTFSRESIZE: Final = ("ntfsresize", "--no-progress-bar")


def _before_ntfs(device: Path) -> None:
    # Without --force, ntfsresize refuses a volume that is hibernated, dirty or due for chkdsk.
    _parse(device, *_NTFSRESIZE, "--no-action")


def _grow_ntfs(device: Path) -> None:
    # One --force only answers the confirmation prompt; it takes two to accept a dirty volume.
    _parse(device, *_NTFSRESIZE, "--force", writable=True)


def _after_ntfs(device: Path) -> None:
    # Growing schedules a check by Windows; ntfsresize takes that mark for a dirty volume.
    _parse(device, *_NTFSRESIZE, "--info", "--force")


GROWERS: Final[Mapping[str, Grower]] = MappingProxyType(
    {
        "ext4": Grower(("e2fsck", "resize2fs"), _before_ext, _grow_ext, _after_ext),
        "xfs": Grower(
            ("mount", "umount", "xfs_growfs", "xfs_logprint", "xfs_repair"),
            _before_xfs,
            _grow_xfs,
            _check_xfs,
            "xfs",
        ),
        "btrfs": Grower(("mount", "umount", "btrfs"), _check_btrfs, _grow_btrfs, _check_btrfs, "btrfs"),
        "ntfs": Grower(("ntfsresize",), _before_ntfs, _grow_ntfs, _after_ntfs),
    }
)
"""Growers by the names of :func:`protocol.disk.filesystem_magic.detect_filesystem`."""


def has_driver(name: str, *, proc: Path = Path("/proc"), modules: Path = Path("/lib/modules")) -> bool:
    """Return whether the running kernel can mount a kind of filesystem, possibly by loading its module."""
    known = (proc / "filesystems").read_text().split()
    if name in known:
        return True
    release = (proc / "sys/kernel/osrelease").read_text().strip()
    return any(
        f"/{name}.ko" in (modules / release / listing).read_text()
        for listing in ("modules.dep", "modules.builtin")
        if (modules / release / listing).exists()
    )


def filesystem_bytes_untrusted(read: Read, kind: str) -> int:
    """Return the size that a filesystem claims; 0 if unknown.

    Args:
        read: reads its partition.
        kind: a key of :data:`GROWERS`.
    """
    if kind == "ext4":
        block = read(1024, 1024)
        if len(block) < 1024:
            return 0
        high = (
            _little_endian(block, 0x150, 4) if _little_endian(block, 0x60, 4) & 0x80 else 0
        )  # INCOMPAT_64BIT
        return (high << 32 | _little_endian(block, 4, 4)) << (10 + min(6, _little_endian(block, 0x18, 4)))
    if kind == "xfs":
        block = read(0, 512)
        return int.from_bytes(block[4:8]) * int.from_bytes(block[8:16])
    if kind == "btrfs":
        block = read(65536, 4096)
        return _little_endian(block, 0xC9 + 8, 8)  # dev_item.total_bytes: of this device
    if kind == "ntfs":
        block = read(0, 512)
        return _little_endian(block, 0x28, 8) * _little_endian(block, 0x0B, 2)
    return 0


def _little_endian(block: bytes, offset: int, length: int) -> int:
    return int.from_bytes(block[offset : offset + length], "little")


def check_size(read: Read, kind: str, size_bytes: int) -> int:
    """Return the grown filesystem's size as it is on the disk.

    Raises:
        StepError: it doesn't fill its partition.
    """
    now_bytes = filesystem_bytes_untrusted(read, kind)
    if not size_bytes - SLACK_BYTES <= now_bytes <= size_bytes:
        raise StepError(
            f"its tool reported success, but the {kind} filesystem on the disk has {format_bytes(now_bytes)} instead "
            f"of {format_bytes(size_bytes)}"
        )
    return now_bytes
