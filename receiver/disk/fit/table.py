"""A partition table on a disk larger than the image's: the GPT's backup at the end, the last partition grown.

What may grow and how far is decided by pure functions; ``sfdisk`` changes the table, and what the disk then has is
read back past the page cache.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
import zlib
from pathlib import Path
from typing import Final

from protocol.constants import KIB, MIB
from protocol.disk.disk_layout import DiskLayout, Partition, TableKind, parse_layout_untrusted
from protocol.disk.partition_table import Read
from protocol.shared.units import format_bytes
from receiver.disk.fit.programs import TABLE_TIME_LIMIT_S, StepError, find_program, last_lines, run_program
from receiver.disk.read_back import ALIGNMENT_BYTES, ReadBack

ALIGNMENT: Final = MIB
"""Where partitions begin and end: a multiple of every disk's inner unit."""

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
"""Types that have a reason to be as large as they are, or whose content no tool here grows (UEFI specification 2.10
table 5.7, Discoverable Partitions Specification, MBR types as the kernel and sfdisk know them)."""

EFI_SYSTEM_TYPES: Final = ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "0xEF")

_MBR_SECTORS_MAX: Final = 2**32
"""Start and size are 32-bit numbers of sectors: 2 TiB of 512-byte ones."""
_GPT_BACKUP_SECTORS: Final = 1
_GPT_ENTRIES_BYTES: Final = 16 * KIB
_GPT_HEADER: Final = struct.Struct("<8sIIIIQQQQ")
_GPT_HEADER_BYTES_MIN: Final = 92
_GPT_SIGNATURE: Final = b"EFI PART"

# The kernel would refuse to read a claimed disk's table again for anybody but the claim's holder, who does it at the
# end; sfdisk's own question whether the disk is in use is answered by the claim.
# Signatures that it finds are the image's, none of which may be wiped.
_QUIET: Final = (
    "--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "never", "--wipe-partitions", "never",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Growth:
    """What is to be grown, and where it will end."""

    partition: Partition | None
    """None: the filesystem lies on the target itself."""
    container: Partition | None
    """The extended partition that has to grow with a logical one."""
    filesystem: str
    start_bytes: int
    old_stop_bytes: int
    stop_bytes: int

    @property
    def size_bytes(self) -> int:
        """Of the range when it has grown."""
        return self.stop_bytes - self.start_bytes

    @property
    def grows_partition(self) -> bool:
        """Whether the table has to be changed."""
        return self.partition is not None and self.stop_bytes > self.old_stop_bytes

    @property
    def name(self) -> str:
        """``partition 2 (ext4)``."""
        return f"partition {self.partition.number} ({self.filesystem})" if self.partition else self.filesystem


def growth_obstacle(layout: DiskLayout) -> str:
    """Why nothing of this disk can be grown; empty if something can."""
    if layout.table is TableKind.NONE:
        if layout.filesystem in GROWABLE:
            return ""
        return f"there is no partition table, and {_cannot_grow(layout.filesystem)}"
    last = _last_partition(layout)
    if last is None:
        return "its partition table has no partition"
    if last.is_extended:
        return f"the last partition ({last.number}) is an extended one with nothing at its end"
    if last.type in _FIXED_TYPES:
        return f"the last partition ({last.number}) is {_FIXED_TYPES[last.type]}, which isn't to grow"
    if last.filesystem not in GROWABLE:
        return f"of the last partition ({last.number}), {_cannot_grow(last.filesystem)}"
    return ""


def plan_growth(layout: DiskLayout, size_bytes: int, *, usable_stop_bytes: int | None = None) -> Growth:
    """How far what is last on the disk can grow; it may be that it already reaches there.

    Args:
        layout: one without a :func:`growth_obstacle`.
        size_bytes: the disk's size.
        usable_stop_bytes: where the GPT's own copy begins at the end of the disk, if that is known exactly.
    """
    if layout.table is TableKind.NONE:
        return Growth(None, None, layout.filesystem, 0, size_bytes, size_bytes)
    last = _last_partition(layout)
    assert last is not None
    if layout.table is TableKind.GPT:
        usual_stop_bytes = size_bytes - _GPT_ENTRIES_BYTES - _GPT_BACKUP_SECTORS * layout.sector_bytes
        limit_bytes = usable_stop_bytes if usable_stop_bytes is not None else usual_stop_bytes
    else:
        # A partition that starts near 2 TiB could end beyond it, but few firmwares follow.
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
    """The one that ends last; of a logical partition and the extended one around it, the logical one."""
    return max(
        layout.partitions,
        key=lambda part: (part.start_bytes if part.is_extended else part.stop_bytes, not part.is_extended),
        default=None,
    )


def _cannot_grow(filesystem: str) -> str:
    if not filesystem:
        return "the filesystem isn't known"
    if filesystem == "swap":
        return "the content is swap"
    return f"the filesystem is {filesystem}, which no tool here grows"


# -- what is on the disk ---------------------------------------------------------------------------------------


def direct_reader(read_back: ReadBack) -> Read:
    """Reads any range past the page cache; a range beyond the end is shorter.

    Raises:
        StorageError: (each call) the disk can't read.
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
    """The layout that the disk has now, past the page cache."""
    return parse_layout_untrusted(
        direct_reader(read_back), read_back.size_bytes, sector_bytes=max(512, sector_bytes)
    )


def has_backup_at_end_untrusted(read: Read, size_bytes: int, sector_bytes: int) -> bool:
    """Whether a GPT's backup is in the disk's last sector, right, and the first header says so."""
    last_sector = size_bytes // sector_bytes - 1
    first = _gpt_header_untrusted(read, 1, sector_bytes)
    copy = _gpt_header_untrusted(read, last_sector, sector_bytes)
    return first is not None and first[0] == last_sector and copy is not None


def usable_stop_bytes_untrusted(read: Read, sector_bytes: int) -> int | None:
    """Where the last sector that a GPT has for partitions ends; None if its first header isn't right."""
    first = _gpt_header_untrusted(read, 1, sector_bytes)
    return first[1] if first else None


def _gpt_header_untrusted(read: Read, sector: int, sector_bytes: int) -> tuple[int, int] | None:
    """The other copy's sector and where the usable sectors end; None if there is no right header for ``sector``."""
    header = read(sector * sector_bytes, sector_bytes)
    if len(header) < sector_bytes:
        return None
    signature, _, header_bytes, checksum, _, own, other, _, last_usable = _GPT_HEADER.unpack_from(header)
    if signature != _GPT_SIGNATURE or not _GPT_HEADER_BYTES_MIN <= header_bytes <= sector_bytes:
        return None
    zeroed = header[:16] + bytes(4) + header[20:header_bytes]
    if zlib.crc32(zeroed) != checksum or own != sector:
        return None
    return other, (last_usable + 1) * sector_bytes


# -- changing it -----------------------------------------------------------------------------------------------


def move_backup_argv(disk: Path) -> list[str]:
    """The command that writes a GPT's backup to the end of ``disk``, and the protective MBR's size with it."""
    return ["sfdisk", *_QUIET, "--relocate", "gpt-bak-std", str(disk)]


def resize_argv(disk: Path, number: int) -> list[str]:
    """The command that changes one partition to what :func:`resize_text` says; all else about it stays."""
    return ["sfdisk", *_QUIET, "-N", str(number), str(disk)]


def resize_text(start_bytes: int, stop_bytes: int, sector_bytes: int) -> str:
    """A partition's place as sfdisk reads it from its input, in sectors."""
    return f"start={start_bytes // sector_bytes}, size={(stop_bytes - start_bytes) // sector_bytes}\n"


def move_backup(disk: Path) -> None:
    """Move a GPT's backup to the disk's end.

    Power cut: sfdisk writes the backup first, then the table itself, so that one of them is right; whatever it is, the
    next run of the same command writes the image's table anew and comes back here.

    Raises:
        StepError: it failed.
    """
    run_program(move_backup_argv(disk), time_limit_s=TABLE_TIME_LIMIT_S)


def grow_partition(disk: Path, growth: Growth, sector_bytes: int) -> None:
    """Move the partition's end; a logical one's extended partition first.

    Raises:
        StepError: it failed.
    """
    assert growth.partition is not None
    for part in (growth.container, growth.partition):
        if part is not None and part.stop_bytes < growth.stop_bytes:
            run_program(
                resize_argv(disk, part.number),
                text=resize_text(part.start_bytes, growth.stop_bytes, sector_bytes),
                time_limit_s=TABLE_TIME_LIMIT_S,
            )


def check_table(disk: Path) -> None:
    """Let ``sfdisk``, and ``sgdisk`` where it is installed, check a GPT.

    Raises:
        StepError: one of them finds something wrong.
    """
    output = run_program(["sfdisk", "--verify", str(disk)], time_limit_s=TABLE_TIME_LIMIT_S)
    if "No errors detected" not in output:
        raise StepError(f"sfdisk --verify isn't content with the partition table: {last_lines(output)}")
    if find_program("sgdisk") is None:
        return
    output = run_program(["sgdisk", "--verify", str(disk)], time_limit_s=TABLE_TIME_LIMIT_S)
    if "No problems found" not in output:  # its exit code is 0 all the same
        raise StepError(f"sgdisk --verify isn't content with the partition table: {last_lines(output)}")


def check_grown(layout: DiskLayout, growth: Growth) -> None:
    """Compare what the disk now has with what was asked for.

    Raises:
        StepError: the partition isn't there or ends elsewhere.
    """
    assert growth.partition is not None
    number = growth.partition.number
    now = next((part for part in layout.partitions if part.number == number), None)
    if now is None or (now.start_bytes, now.stop_bytes) != (growth.start_bytes, growth.stop_bytes):
        place = f"ends at {format_bytes(now.stop_bytes)}" if now else "is gone"
        raise StepError(f"sfdisk reported success, but on the disk partition {number} {place}")
