"""The partition table on a disk that is larger than its image: moving the GPT's backup, growing the last partition.

Pure functions decide what may grow and how far. The backup moves without any tool, since every agent must be able to
move it, with whatever privileges; ``sfdisk`` grows partitions. The table is then read back past the page cache.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
from pathlib import Path
from typing import Final

from protocol.constants import KIB, MIB
from protocol.disk.disk_reads import Read
from protocol.disk.gpt import move_backup_untrusted
from protocol.disk.partition_table import DiskLayout, Partition, TableKind, parse_layout_untrusted
from protocol.disk.seed_partition import SEED_PARTITION_NAME
from protocol.program.confinement import ToolDevice
from protocol.shared.units import format_bytes
from receiver.disk.fit.programs import (
    TABLE_TIME_LIMIT_S,
    StepError,
    find_program,
    last_lines,
    parser_of,
    run_program,
)
from receiver.disk.read_back import ALIGNMENT_BYTES, ReadBack
from receiver.disk.target import Target

ALIGNMENT: Final = MIB
"""Alignment of partition boundaries: a multiple of every disk's internal unit."""

GROWABLE: Final = ("ext4", "xfs", "btrfs", "ntfs")

_FIXED_TYPES: Final = {
    "C12A7328-F81F-11D2-BA4B-00A0C93EC93B": "an EFI system partition",
    "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F": "swap",
    "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC": "a Windows recovery partition",
    "E3C9E316-0B5C-4DB8-817D-F92DF00215AE": "a Microsoft reserved partition",
    "21686148-6449-6E6F-744E-656564454649": "a BIOS boot partition",
    "E6D6D379-F507-44C2-A23C-238F2A3DF928": "an LVM physical volume",
    "A19D880F-05FC-4D3B-A006-743F0F84911E": "a member of a RAID",
    "CA7D7CCB-63ED-4C53-861C-1742536059CC": "encrypted (LUKS)",
    "0x82": "swap",
    "0x27": "a Windows recovery partition",
    "0x12": "a recovery partition",
    "0xEF": "an EFI system partition",
    "0x8E": "an LVM physical volume",
    "0xFD": "a member of a RAID",
}
"""Partition types of fixed size, or whose content can't be grown here (UEFI specification 2.10 table 5.7, Discoverable
Partitions Specification, MBR types as in the kernel and sfdisk)."""

_MBR_SECTORS_MAX: Final = 2**32
"""Limit of the 32-bit start and size fields: 2 TiB with 512-byte sectors."""
_GPT_BACKUP_SECTORS: Final = 1
_GPT_ENTRIES_BYTES: Final = 16 * KIB

# The kernel rereads a claimed disk's table only for the holder of the claim: this process, which requests it at the
# end. The claim also proves that the disk isn't in use. Signatures on the disk are the image's and mustn't be wiped.
_QUIET: Final = (
    "--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "never", "--wipe-partitions", "never",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Growth:
    """The partition or filesystem to grow, and its new end."""

    partition: Partition | None
    """None if the filesystem is on the target itself, without a table."""
    container: Partition | None
    """The extended partition that must grow with a logical one."""
    filesystem: str
    start_bytes: int
    old_stop_bytes: int
    stop_bytes: int

    @property
    def size_bytes(self) -> int:
        """Return the size of the range after growing."""
        return self.stop_bytes - self.start_bytes

    @property
    def grows_partition(self) -> bool:
        """Return whether the table must be changed."""
        return self.partition is not None and self.stop_bytes > self.old_stop_bytes

    @property
    def name(self) -> str:
        """Return a name such as ``partition 2 (ext4)``."""
        return f"partition {self.partition.number} ({self.filesystem})" if self.partition else self.filesystem


def growth_obstacle(layout: DiskLayout) -> str:
    """Return the reason why nothing on this disk can be grown; empty if something can."""
    if layout.table is TableKind.NONE:
        if layout.filesystem in GROWABLE:
            return ""
        return f"there is no partition table, and {_cannot_grow(layout.filesystem)}"
    last = _last_partition(layout)
    if last is None:
        return "its partition table has no partition"
    if last.is_extended:
        return f"the last partition ({last.number}) is an extended one with nothing at its end"
    if last.name == SEED_PARTITION_NAME:
        return (
            f"the last partition ({last.number}) is the seed partition: leave 5 MiB free before the partition that "
            "shall grow, and prepare the golden image again"
        )
    if last.type in _FIXED_TYPES:
        return f"the last partition ({last.number}) is {_FIXED_TYPES[last.type]}, which is never grown"
    if last.filesystem not in GROWABLE:
        return f"in the last partition ({last.number}), {_cannot_grow(last.filesystem)}"
    return ""


def plan_growth(layout: DiskLayout, size_bytes: int, *, usable_stop_bytes: int | None = None) -> Growth:
    """Compute how far the last partition or filesystem can grow; it may reach there already.

    Args:
        layout: a layout without a :func:`growth_obstacle`.
        size_bytes: size of the disk.
        usable_stop_bytes: end of the sectors that the GPT allows for partitions, if it is known exactly.
    """
    if layout.table is TableKind.NONE:
        return Growth(None, None, layout.filesystem, 0, size_bytes, size_bytes)
    last = _last_partition(layout)
    assert last is not None
    if layout.table is TableKind.GPT:
        usual_stop_bytes = size_bytes - _GPT_ENTRIES_BYTES - _GPT_BACKUP_SECTORS * layout.sector_bytes
        limit_bytes = usable_stop_bytes if usable_stop_bytes is not None else usual_stop_bytes
    else:
        # A partition that starts below 2 TiB could end beyond, but little firmware supports that.
        limit_bytes = min(size_bytes, _MBR_SECTORS_MAX * layout.sector_bytes)
    stop_bytes = max(last.stop_bytes, limit_bytes // ALIGNMENT * ALIGNMENT)
    container = next(
        (
            part
            for part in layout.partitions
            if part.is_extended and part.start_bytes < last.start_bytes < part.stop_bytes
        ),
        None,
    )
    return Growth(last, container, last.filesystem, last.start_bytes, last.stop_bytes, stop_bytes)


def _last_partition(layout: DiskLayout) -> Partition | None:
    """Return the partition that ends last; a logical partition rather than the extended one around it."""
    return max(
        layout.partitions,
        key=lambda part: (part.start_bytes if part.is_extended else part.stop_bytes, not part.is_extended),
        default=None,
    )


def _cannot_grow(filesystem: str) -> str:
    if not filesystem:
        return "the filesystem is unknown"
    if filesystem == "swap":
        return "the content is swap"
    return f"the filesystem is {filesystem}, which can't be grown here"


# -- reading the table -----------------------------------------------------------------------------------------


def direct_reader(read_back: ReadBack) -> Read:
    """Return a function that reads any range past the page cache, shorter at the end of the disk.

    The function raises ``StorageError`` if the disk can't be read.
    """

    def read(offset: int, length: int) -> bytes:
        start = offset // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        stop = -(-(offset + length) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if length <= 0 or offset >= read_back.size_bytes:
            return b""
        with mmap.mmap(-1, stop - start) as buffer:
            with memoryview(buffer) as view:
                count = read_back.read_into(view, start)
            return buffer[offset - start : min(count, offset - start + length)]

    return read


def read_layout(read_back: ReadBack, sector_bytes: int) -> DiskLayout:
    """Read the disk's current layout past the page cache."""
    return parse_layout_untrusted(
        direct_reader(read_back), read_back.size_bytes, sector_bytes=max(512, sector_bytes)
    )


# -- changing the table ----------------------------------------------------------------------------------------


def resize_argv(disk: Path, number: int) -> list[str]:
    """Return the command that changes the place of one partition to its input, see :func:`resize_text`."""
    return ["sfdisk", *_QUIET, "-N", str(number), str(disk)]


def resize_text(start_bytes: int, stop_bytes: int, sector_bytes: int) -> str:
    """Return a partition's place in sectors, as sfdisk reads it from its input."""
    return f"start={start_bytes // sector_bytes}, size={(stop_bytes - start_bytes) // sector_bytes}\n"


def move_backup(target: Target, sector_bytes: int) -> None:
    """Move a GPT's backup to the disk's end, and extend the protective boot record.

    Power cut: the backup is on the disk before the primary header changes, so that one of them is valid; in either case
    the next run of the same command writes the image's table again and repeats this step.

    Raises:
        StepError: the primary table is invalid, a partition is in the way, or a write failed.
        StorageError: the disk can't be read or flushed.
    """
    moved = move_backup_untrusted(direct_reader(target.read_back), target.size_bytes, sector_bytes)
    if moved is None:
        raise StepError("its primary GPT is invalid, or a partition reaches to the end of the disk")
    for writes in (moved.backup, moved.primary):
        for offset_bytes, data in writes:
            try:
                written_count = os.pwrite(target.fd, data, offset_bytes)
            except OSError as error:
                raise StepError(f"writing at byte {offset_bytes} failed: {error.strerror}") from error
            if written_count != len(data):
                raise StepError(f"writing at byte {offset_bytes} was cut short")
        target.sync()


def grow_partition(disk: ToolDevice, growth: Growth, sector_bytes: int) -> None:
    """Move the partition's end, first that of the extended partition around a logical one.

    Raises:
        StepError: sfdisk failed.
    """
    assert growth.partition is not None
    for part in (growth.container, growth.partition):
        if part is not None and part.stop_bytes < growth.stop_bytes:
            _change_table(
                disk,
                resize_argv(Path(disk.path), part.number),
                resize_text(part.start_bytes, growth.stop_bytes, sector_bytes),
            )


def _change_table(disk: ToolDevice, argv: list[str], text: str = "") -> None:
    run_program(argv, confinement=parser_of(disk, writable=True), text=text, time_limit_s=TABLE_TIME_LIMIT_S)


def check_table(disk: ToolDevice) -> None:
    """Check a GPT with ``sfdisk``, and with ``sgdisk`` if it is installed.

    Raises:
        StepError: one of them reports an error.
    """
    output = _look("sfdisk", "--verify", disk=disk)
    if "No errors detected" not in output:
        raise StepError(f"sfdisk --verify reports errors in the partition table: {last_lines(output)}")
    if find_program("sgdisk") is None:
        return
    output = _look("sgdisk", "--verify", disk=disk)
    if "No problems found" not in output:  # its exit code is 0 in any case
        raise StepError(f"sgdisk --verify reports errors in the partition table: {last_lines(output)}")


def _look(*argv: str, disk: ToolDevice) -> str:
    return run_program([*argv, disk.path], confinement=parser_of(disk), time_limit_s=TABLE_TIME_LIMIT_S)


def check_grown(layout: DiskLayout, growth: Growth) -> None:
    """Compare the disk's current partition with the planned one.

    Raises:
        StepError: the partition is missing or ends elsewhere.
    """
    assert growth.partition is not None
    number = growth.partition.number
    now = next((part for part in layout.partitions if part.number == number), None)
    if now is None or (now.start_bytes, now.stop_bytes) != (growth.start_bytes, growth.stop_bytes):
        place = f"ends at {format_bytes(now.stop_bytes)}" if now else "is missing"
        raise StepError(f"sfdisk reported success, but on the disk partition {number} {place}")
