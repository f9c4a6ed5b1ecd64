"""Boot loaders on FAT, found without a driver or a tool."""

from __future__ import annotations

import pytest

from protocol.disk.fat import FatError, has_fat_file_untrusted
from tests.support.disks.disk_layouts import reader
from tests.support.disks.fat import fat_filesystem, link

LOADER = r"\EFI\BOOT\BOOTX64.EFI"


@pytest.mark.parametrize("entry_bits", [12, 16, 32])
def test_a_loader_is_found_in_any_letter_case(entry_bits: int) -> None:
    """A wrong "no" would fail the fitting of every machine of a room after an hour of casting."""
    read = reader(fat_filesystem(entry_bits))
    assert has_fat_file_untrusted(read, LOADER)
    assert has_fat_file_untrusted(read, LOADER.lower())


@pytest.mark.parametrize("entry_bits", [12, 16, 32])
def test_a_long_name_is_compared_whole(entry_bits: int) -> None:
    read = reader(fat_filesystem(entry_bits, loader="bootloongarch64.efi"))
    assert has_fat_file_untrusted(read, r"\EFI\BOOT\BOOTLOONGARCH64.EFI")
    assert not has_fat_file_untrusted(read, r"\EFI\BOOT\BOOTLOONGARCH6.EFI")


@pytest.mark.parametrize(
    ("path"),
    [
        r"\EFI\BOOT\BOOTIA32.EFI",
        r"\EFI\BOOTX64.EFI",
        r"\BOOTX64.EFI",
        r"\EFI\BOOT",  # a directory
        r"\EFI\BOOT\BOOTX64.EFI\BOOTX64.EFI",
        r"\ROOM",  # the volume label
    ],
)
def test_nothing_else_is_taken_for_a_file(path: str) -> None:
    assert not has_fat_file_untrusted(reader(fat_filesystem(16)), path)


def test_a_long_name_of_another_file_is_a_leftover() -> None:
    """A DOS program that renames a file leaves the long name of the old one before it."""
    disk = fat_filesystem(12, loader="bootriscv64.efi")
    at = disk.index(b"BOOTRI~1EFI")
    disk[at : at + 11] = b"OTHER   EFI"
    assert not has_fat_file_untrusted(reader(disk), r"\EFI\BOOT\BOOTRISCV64.EFI")
    assert has_fat_file_untrusted(reader(disk), r"\EFI\BOOT\OTHER.EFI")


@pytest.mark.parametrize("entry_bits", [12, 16, 32])
def test_directories_continue_in_further_clusters(entry_bits: int) -> None:
    disk = fat_filesystem(entry_bits)
    at = disk.index(b"BOOTX64 EFI") // 512 * 512
    disk[at + 512 : at + 1024] = disk[at : at + 512]
    disk[at : at + 512] = b"\xe5" * 512
    link(disk, entry_bits, 4, 5)
    assert has_fat_file_untrusted(reader(disk), LOADER)


def test_a_loop_of_clusters_ends() -> None:
    """A hostile image must not keep its machine busy forever."""
    disk = fat_filesystem(16)
    at = disk.index(b"BOOTX64 EFI") // 512 * 512
    disk[at : at + 512] = b"\xe5" * 512
    link(disk, 16, 4, 4)
    assert not has_fat_file_untrusted(reader(disk), LOADER)


@pytest.mark.parametrize("disk", [b"", bytes(512), b"\xff" * 512])
def test_anything_but_fat_is_called_damaged(disk: bytes) -> None:
    with pytest.raises(FatError, match="damaged"):
        has_fat_file_untrusted(reader(disk), LOADER)
