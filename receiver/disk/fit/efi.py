r"""A firmware boot entry for the disk's EFI system partition, by ``efibootmgr``.

The entry names the partition by its GUID and the loader that every installer leaves there for removable media,
``\EFI\BOOT\BOOTX64.EFI`` or its like; what a vendor's own loader would add is not known here. One that is already right
is left alone: a reimaged disk has the image's GUIDs, and the firmware's store wears out.
"""

from __future__ import annotations

import dataclasses
import platform
import re
from pathlib import Path
from typing import Final

from protocol.disk.disk_layout import DiskLayout, Partition, TableKind
from protocol.errors import ConfigurationError
from receiver.disk.fit.programs import FIRMWARE_TIME_LIMIT_S, TABLE_TIME_LIMIT_S, StepError, run_program
from receiver.disk.fit.table import EFI_SYSTEM_TYPES

FIRMWARE: Final = Path("/sys/firmware/efi")
LABEL_CHARS_MAX: Final = 64
"""Boot menus show about as much, and some firmwares cut or drop longer ones."""

PROGRAMS: Final = ("efibootmgr", "mdir")

_LOADERS: Final = {
    ("x86_64", 64): "BOOTX64.EFI",
    ("x86_64", 32): "BOOTIA32.EFI",
    ("i686", 32): "BOOTIA32.EFI",
    ("aarch64", 64): "BOOTAA64.EFI",
    ("riscv64", 64): "BOOTRISCV64.EFI",
    ("loongarch64", 64): "BOOTLOONGARCH64.EFI",
}
"""UEFI specification 2.10, table 3.2; by machine and the firmware's own word size."""

_ENTRY: Final = re.compile(r"^Boot([0-9A-Fa-f]{4})([* ]) ?(.*)$", re.MULTILINE)
_ORDER: Final = re.compile(r"^BootOrder: *([0-9A-Fa-f,]+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True, slots=True)
class BootEntry:
    """One line of ``efibootmgr --verbose``."""

    number: str
    """Four hexadecimal digits."""
    active: bool
    label: str
    path: str
    """The device path as text; empty where this version doesn't show it."""


@dataclasses.dataclass(frozen=True, slots=True)
class BootEntries:
    """What the firmware would boot."""

    entries: tuple[BootEntry, ...]
    order: tuple[str, ...]


def parse_entries(output: str) -> BootEntries:
    """The output of ``efibootmgr --verbose`` of any version: label and path are divided by a tab."""
    entries = []
    for match in _ENTRY.finditer(output):
        label, _, path = match[3].partition("\t")
        entries.append(BootEntry(match[1].upper(), match[2] == "*", label.rstrip(), path.strip()))
    order = _ORDER.search(output)
    numbers = tuple(number.upper() for number in order[1].split(",") if number) if order else ()
    return BootEntries(tuple(entries), numbers)


@dataclasses.dataclass(frozen=True, slots=True)
class WantedEntry:
    """The entry that is to be there."""

    label: str
    partition: Partition
    partition_guid: str
    """Empty on a disk with an MBR, whose entries are always made anew."""
    loader: str
    """As ``\\EFI\\BOOT\\BOOTX64.EFI``."""
    sector_bytes: int

    def is_met_by(self, entry: BootEntry) -> bool:
        """Whether ``entry`` boots just that."""
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


def is_there(wanted: WantedEntry, listing: BootEntries) -> bool:
    """Whether the entry is there, in the boot order, and the only one of its label."""
    same = [entry for entry in listing.entries if entry.label == wanted.label]
    return len(same) == 1 and wanted.is_met_by(same[0]) and same[0].number in listing.order


def create_argv(disk: Path, wanted: WantedEntry) -> list[str]:
    """The command that adds the entry, first in the boot order."""
    return [
        "efibootmgr", "--create", "--disk", str(disk), "--part", str(wanted.partition.number),
        "--label", wanted.label, "--loader", wanted.loader,
    ]  # fmt: skip


def delete_argv(number: str) -> list[str]:
    """The command that removes an entry, also from the boot order."""
    return ["efibootmgr", "--bootnum", number, "--delete-bootnum"]


def order_argv(order: tuple[str, ...]) -> list[str]:
    """The command that sets the boot order."""
    return ["efibootmgr", "--bootorder", ",".join(order)]


def new_order(before: BootEntries, after: BootEntries, label: str) -> tuple[str, ...] | None:
    """The boot order in which the new entry stands where the first of its label stood; None if it already does.

    A room's machines often have the network first: a replaced entry mustn't change that.

    Args:
        before: when the entry wasn't made yet.
        after: when it was, and the old ones of its label were removed.
        label: the entry's.
    """
    old = {entry.number for entry in before.entries if entry.label == label}
    new = [entry.number for entry in after.entries if entry.label == label]
    place = next((index for index, number in enumerate(before.order) if number in old), None)
    if place is None or len(new) != 1:
        return None
    others = [number for number in before.order if number not in old and number != new[0]]
    ahead = sum(number not in old for number in before.order[:place])
    order = (*others[:ahead], new[0], *others[ahead:])
    return order if order != after.order else None


def loader_name(machine: str, firmware_bits: int) -> str:
    """The file that this machine's firmware starts from removable media.

    Raises:
        ConfigurationError: a kind of machine that isn't known.
    """
    name = _LOADERS.get((machine, firmware_bits))
    if name is None:
        raise ConfigurationError(
            f"no boot loader's name is known for {machine} with a {firmware_bits}-bit firmware: make the entry with "
            "efibootmgr --create --loader yourself"
        )
    return name


def this_loader_name() -> str:
    """:func:`loader_name` of this machine."""
    try:
        bits = int((FIRMWARE / "fw_platform_size").read_text())
    except (OSError, ValueError):
        bits = 64
    return loader_name(platform.machine(), bits)


def find_efi_partition(layout: DiskLayout) -> Partition | None:
    """The first EFI system partition."""
    return next((part for part in layout.partitions if part.type in EFI_SYSTEM_TYPES), None)


def check_label(label: str) -> None:
    """Refuse what can't be an entry's label.

    Raises:
        ConfigurationError: it is empty, too long or not printable.
    """
    if not label.strip() or label != label.strip() or len(label) > LABEL_CHARS_MAX or not label.isprintable():
        raise ConfigurationError(
            f"{label!r} can't be the label of a boot entry: write 1 to {LABEL_CHARS_MAX} printable characters"
        )


def check_firmware() -> None:
    """Refuse a machine that wasn't started by UEFI.

    Raises:
        ConfigurationError: it was started by BIOS, or its firmware's variables can't be reached.
    """
    if not FIRMWARE.is_dir():
        raise ConfigurationError(
            "this machine was started by BIOS (there is no /sys/firmware/efi): start it by UEFI, or run without "
            "--efi-entry; nothing was written"
        )
    variables = FIRMWARE / "efivars"
    if not variables.is_dir() or not any(variables.iterdir()):
        raise ConfigurationError(
            "the firmware's variables aren't there: mount -t efivarfs efivarfs /sys/firmware/efi/efivars, or run "
            "without --efi-entry; nothing was written"
        )
    this_loader_name()


def make_entry(disk: Path, layout: DiskLayout, label: str) -> str:
    """See to it that there is exactly one entry ``label``, and that it boots this disk.

    The new one is made before the old ones are removed: at no time there is none.

    Returns:
        What was done, empty if nothing.

    Raises:
        StepError: there is no system partition, no loader in it, or the firmware doesn't take the entry.
    """
    part = find_efi_partition(layout)
    if part is None:
        raise StepError("the disk has no EFI system partition")
    name = this_loader_name()
    _find_loader(disk, part, name)
    guid = ""
    if layout.table is TableKind.GPT:
        argv = ["sfdisk", "--part-uuid", str(disk), str(part.number)]
        guid = run_program(argv, time_limit_s=TABLE_TIME_LIMIT_S).strip()
    wanted = WantedEntry(label, part, guid, f"\\EFI\\BOOT\\{name}", layout.sector_bytes)
    before = list_entries()
    if is_there(wanted, before):
        return ""
    _change(create_argv(disk, wanted))
    stale = [entry.number for entry in before.entries if entry.label == label]
    for number in stale:
        _change(delete_argv(number))
    after = list_entries()
    order = new_order(before, after, label)
    if order is not None:
        _change(order_argv(order))
        after = list_entries()
    if not (is_there(wanted, after) if guid else any(entry.label == label for entry in after.entries)):
        raise StepError(
            "efibootmgr reported success, but the firmware doesn't have the entry: its store may be full"
        )
    replaced = f", which replaces {len(stale)} of that label" if stale else ""
    return (
        f"The firmware has the boot entry {label} for {wanted.loader} on partition {part.number}{replaced}."
    )


def list_entries() -> BootEntries:
    """What the firmware has now.

    Raises:
        StepError: it can't be asked.
    """
    return parse_entries(run_program(["efibootmgr", "--verbose"], time_limit_s=FIRMWARE_TIME_LIMIT_S))


def _change(argv: list[str]) -> None:
    run_program(argv, time_limit_s=FIRMWARE_TIME_LIMIT_S)


def _find_loader(disk: Path, part: Partition, name: str) -> None:
    try:
        run_program(
            ["mdir", "-b", "-i", f"{disk}@@{part.start_bytes}", f"::/EFI/BOOT/{name}"],
            time_limit_s=TABLE_TIME_LIMIT_S,
        )
    except StepError as error:
        raise StepError(
            f"\\EFI\\BOOT\\{name} isn't on the EFI system partition ({part.number}): the entry would start "
            f"nothing: {error}"
        ) from error
