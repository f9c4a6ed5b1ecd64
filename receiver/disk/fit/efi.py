r"""A firmware boot entry for the disk's EFI system partition, managed by ``efibootmgr``.

The entry names the partition by its GUID, and the loader that every installer leaves there for removable media,
``\EFI\BOOT\BOOTX64.EFI`` or the like; a vendor's own loader and its options aren't known here. An entry that is right
already is left alone: a reimaged disk has the image's GUIDs, and the firmware's store wears out.
"""

from __future__ import annotations

import dataclasses
import platform
import re
from pathlib import Path
from typing import Final

from protocol.disk.disk_reads import Read, reader_from
from protocol.disk.fat import FatError, has_fat_file_untrusted
from protocol.disk.partition_table import EFI_SYSTEM_TYPES, DiskLayout, Partition, TableKind
from protocol.errors import ConfigurationError
from protocol.program.confinement import FIRMWARE_TOOL, ToolDevice
from receiver.disk.fit.programs import (
    FIRMWARE_TIME_LIMIT_S,
    TABLE_TIME_LIMIT_S,
    StepError,
    parser_of,
    run_program,
)

FIRMWARE: Final = Path("/sys/firmware/efi")
LABEL_CHARS_MAX: Final = 64
"""Longest label: boot menus show about as much, and some firmware cuts or drops longer ones."""

PROGRAMS: Final = ("efibootmgr",)

_LOADERS: Final = {
    ("x86_64", 64): "BOOTX64.EFI",
    ("x86_64", 32): "BOOTIA32.EFI",
    ("i686", 32): "BOOTIA32.EFI",
    ("aarch64", 64): "BOOTAA64.EFI",
    ("riscv64", 64): "BOOTRISCV64.EFI",
    ("loongarch64", 64): "BOOTLOONGARCH64.EFI",
}
"""Loader names by machine and the firmware's word size (UEFI specification 2.10, table 3.2)."""

_ENTRY: Final = re.compile(r"^Boot([0-9A-Fa-f]{4})([* ]) ?(.*)$", re.MULTILINE)
_ORDER: Final = re.compile(r"^BootOrder: *([0-9A-Fa-f,]+)", re.MULTILINE)
_NEXT: Final = re.compile(r"^BootNext: *([0-9A-Fa-f]{4})", re.MULTILINE)

BOOT_NEXT_LABEL: Final = "diskcast disk"
"""Label of the entry for the next boot, where ``--efi-entry`` names no other one."""


@dataclasses.dataclass(frozen=True, slots=True)
class BootEntry:
    """One line of ``efibootmgr --verbose``."""

    number: str
    """Four hexadecimal digits."""
    active: bool
    label: str
    path: str
    """The device path as text; empty if this version of efibootmgr doesn't show it."""


@dataclasses.dataclass(frozen=True, slots=True)
class BootEntries:
    """The firmware's boot entries and boot order."""

    entries: tuple[BootEntry, ...]
    order: tuple[str, ...]


def parse_entries(output: str) -> BootEntries:
    """Parse the output of ``efibootmgr --verbose`` of any version; a tab separates label and path."""
    entries = []
    for match in _ENTRY.finditer(output):
        label, _, path = match[3].partition("\t")
        entries.append(BootEntry(match[1].upper(), match[2] == "*", label.rstrip(), path.strip()))
    order = _ORDER.search(output)
    numbers = tuple(number.upper() for number in order[1].split(",") if number) if order else ()
    return BootEntries(tuple(entries), numbers)


@dataclasses.dataclass(frozen=True, slots=True)
class WantedEntry:
    """The boot entry to ensure."""

    label: str
    partition: Partition
    partition_guid: str
    """Empty on a disk with an MBR, whose entries are always created again."""
    loader: str
    """Path of the loader, such as ``\\EFI\\BOOT\\BOOTX64.EFI``."""
    sector_bytes: int

    def matches(self, entry: BootEntry) -> bool:
        """Return whether ``entry`` is active and boots the wanted loader from the wanted partition."""
        part = self.partition
        node = (
            f"hd({part.number},gpt,{self.partition_guid},0x{part.start_bytes // self.sector_bytes:x},"
            f"0x{part.size_bytes // self.sector_bytes:x})"
        ).lower()
        path = entry.path.lower()
        return (
            bool(self.partition_guid)
            and entry.active
            and entry.label == self.label
            and path.startswith(node)
            and path[len(node) :].removeprefix("/file(").strip("/)") == self.loader.lower()
        )


def has_entry(wanted: WantedEntry, listing: BootEntries) -> bool:
    """Return whether the entry exists, is in the boot order, and is the only one with its label."""
    same = [entry for entry in listing.entries if entry.label == wanted.label]
    return len(same) == 1 and wanted.matches(same[0]) and same[0].number in listing.order


def create_argv(disk: Path, wanted: WantedEntry) -> list[str]:
    """Return the command that adds the entry, first in the boot order."""
    return [
        "efibootmgr", "--create", "--disk", str(disk), "--part", str(wanted.partition.number),
        "--label", wanted.label, "--loader", wanted.loader,
    ]  # fmt: skip


def delete_argv(number: str) -> list[str]:
    """Return the command that removes an entry, also from the boot order."""
    return ["efibootmgr", "--bootnum", number, "--delete-bootnum"]


def order_argv(order: tuple[str, ...]) -> list[str]:
    """Return the command that sets the boot order."""
    return ["efibootmgr", "--bootorder", ",".join(order)]


def boot_next_argv(number: str) -> list[str]:
    """Return the command that starts an entry at the next boot, once, before the boot order."""
    return ["efibootmgr", "--bootnext", number]


def new_order(
    before: BootEntries, after: BootEntries, label: str, *, last: bool = False
) -> tuple[str, ...] | None:
    """Return the boot order with the new entry at the place of the first old one; None if it is there already.

    A room's machines often boot from the network first: a replaced entry mustn't change that.

    Args:
        before: entries before the new one was created.
        after: entries after it was created and the old ones with its label were removed.
        label: label of the entry.
        last: put an entry without an old one behind all others, instead of before them.
    """
    old = {entry.number for entry in before.entries if entry.label == label}
    new = [entry.number for entry in after.entries if entry.label == label]
    place = next((index for index, number in enumerate(before.order) if number in old), None)
    if len(new) != 1 or (place is None and not last):
        return None
    others = [number for number in before.order if number not in old and number != new[0]]
    ahead = sum(number not in old for number in before.order[:place])
    order = (*others[:ahead], new[0], *others[ahead:])
    return order if order != after.order else None


def loader_name(machine: str, firmware_bits: int) -> str:
    """Return the file that the firmware starts from removable media.

    Raises:
        ConfigurationError: no loader is known for this architecture.
    """
    name = _LOADERS.get((machine, firmware_bits))
    if name is None:
        raise ConfigurationError(
            f"no boot loader is known for {machine} with {firmware_bits}-bit firmware: create the entry yourself with "
            "efibootmgr --create --loader"
        )
    return name


def local_loader_name() -> str:
    """Return the :func:`loader_name` of this machine."""
    try:
        bits = int((FIRMWARE / "fw_platform_size").read_text())
    except (OSError, ValueError):
        bits = 64
    return loader_name(platform.machine(), bits)


def find_efi_partition(layout: DiskLayout) -> Partition | None:
    """Return the first EFI system partition; None if there is none."""
    return next((part for part in layout.partitions if part.type in EFI_SYSTEM_TYPES), None)


def check_label(label: str) -> None:
    """Refuse an invalid label.

    Raises:
        ConfigurationError: the label is empty, too long or not printable.
    """
    if not label.strip() or label != label.strip() or len(label) > LABEL_CHARS_MAX or not label.isprintable():
        raise ConfigurationError(
            f"{label!r} can't be the label of a boot entry: write 1 to {LABEL_CHARS_MAX} printable characters"
        )


def check_firmware() -> None:
    """Refuse a machine that wasn't booted by UEFI.

    Raises:
        ConfigurationError: it was booted by BIOS, or its firmware variables are unavailable.
    """
    if not FIRMWARE.is_dir():
        raise ConfigurationError(
            "this machine was booted by BIOS (there is no /sys/firmware/efi): boot it by UEFI, or run without "
            "--efi-entry; nothing was written"
        )
    variables = FIRMWARE / "efivars"
    if not variables.is_dir() or not any(variables.iterdir()):
        raise ConfigurationError(
            "the firmware variables are unavailable: mount -t efivarfs efivarfs /sys/firmware/efi/efivars, or run "
            "without --efi-entry; nothing was written"
        )
    local_loader_name()


def ensure_entry(disk: ToolDevice, read: Read, layout: DiskLayout, label: str, *, last: bool = False) -> str:
    """Ensure that exactly one entry has this label, and that it boots this disk.

    The new entry is created before the old ones are removed, so that there is always one.

    Args:
        disk: the disk.
        read: reads it; its errors propagate.
        layout: its partition table.
        label: label of the entry.
        last: put a new entry behind all others in the boot order, instead of before them.

    Returns:
        A sentence about the change; empty if nothing was changed.

    Raises:
        StepError: there is no system partition, no loader on it, or the firmware doesn't accept the entry.
    """
    part = find_efi_partition(layout)
    if part is None:
        raise StepError("the disk has no EFI system partition")
    name = local_loader_name()
    _require_loader(read, part, name)
    guid = ""
    if layout.table is TableKind.GPT:
        argv = ["sfdisk", "--part-uuid", disk.path, str(part.number)]
        guid = run_program(argv, confinement=parser_of(disk), time_limit_s=TABLE_TIME_LIMIT_S).strip()
    wanted = WantedEntry(label, part, guid, f"\\EFI\\BOOT\\{name}", layout.sector_bytes)
    before = list_entries()
    if has_entry(wanted, before):
        return ""
    _change(create_argv(_node_of(disk), wanted))
    stale = [entry.number for entry in before.entries if entry.label == label]
    for number in stale:
        _change(delete_argv(number))
    after = list_entries()
    order = new_order(before, after, label, last=last)
    if order is not None:
        _change(order_argv(order))
        after = list_entries()
    if not (has_entry(wanted, after) if guid else any(entry.label == label for entry in after.entries)):
        raise StepError(
            "efibootmgr reported success, but the firmware has no such entry: its store may be full"
        )
    replaced = f", which replaces {len(stale)} with that label" if stale else ""
    return f"The firmware now has the boot entry {label} for {wanted.loader} on partition {part.number}{replaced}."


def set_boot_next(label: str) -> None:
    """Start the entry with this label at the next boot, once.

    Raises:
        StepError: there is no such entry, or the firmware doesn't accept the setting.
    """
    number = next((entry.number for entry in list_entries().entries if entry.label == label), None)
    if number is None:
        raise StepError(f"the firmware has no entry {label}")
    _change(boot_next_argv(number))
    found = _NEXT.search(_run_efibootmgr(["efibootmgr", "--verbose"]))
    if found is None or found[1].upper() != number:
        raise StepError(
            "efibootmgr reported success, but the firmware has no next boot: its store may be full"
        )


def list_entries() -> BootEntries:
    """Return the firmware's current entries.

    Raises:
        StepError: efibootmgr failed.
    """
    return parse_entries(_run_efibootmgr(["efibootmgr", "--verbose"]))


def _change(argv: list[str]) -> None:
    _run_efibootmgr(argv)


def _run_efibootmgr(argv: list[str]) -> str:
    return run_program(
        argv,
        confinement=FIRMWARE_TOOL,
        time_limit_s=FIRMWARE_TIME_LIMIT_S,
        variables=("EFIVARFS_PATH",),
    )


def _node_of(disk: ToolDevice) -> Path:
    """Return the disk's node for efibootmgr, which has no private ``/dev``."""
    node = Path(disk.path)
    try:
        number = node.stat().st_rdev
    except OSError as error:
        raise StepError(f"{node} can't be found: {error.strerror}") from error
    if number != disk.number:
        raise StepError(f"{node} isn't the disk that was written: its device number has changed")
    return node


def _require_loader(read: Read, part: Partition, name: str) -> None:
    """Refuse an entry that would start nothing.

    The kernel isn't asked to mount the partition, nor a tool to read it: mtools fails in a small live system without
    its code pages, on a partition that is right.
    """
    partition = f"the EFI system partition ({part.number})"
    try:
        found = has_fat_file_untrusted(
            reader_from(read, part.start_bytes, part.size_bytes), f"\\EFI\\BOOT\\{name}"
        )
    except FatError as error:
        raise StepError(f"{partition} can't be read as FAT: {error}") from error
    if not found:
        raise StepError(f"\\EFI\\BOOT\\{name} isn't on {partition}: the entry would start nothing")
