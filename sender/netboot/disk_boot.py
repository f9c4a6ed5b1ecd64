"""Boots of the machine's own disk on UEFI: GRUB commands that start the loader of the disk. Pure.

Returning to the firmware isn't enough: it tries every other network entry first, IPv6 and HTTP included, each for a
minute, and iPXE of Debian 12 can't start a loader from a disk.
"""

from __future__ import annotations

from typing import Final

DISK_LOADERS: Final = (
    "/EFI/Microsoft/Boot/bootmgfw.efi",
    "/EFI/debian/shimx64.efi",
    "/EFI/ubuntu/shimx64.efi",
    "/EFI/fedora/shimx64.efi",
    "/EFI/redhat/shimx64.efi",
    "/EFI/centos/shimx64.efi",
    "/EFI/rocky/shimx64.efi",
    "/EFI/almalinux/shimx64.efi",
    "/EFI/opensuse/shim.efi",
    "/EFI/sles/shim.efi",
    "/EFI/systemd/systemd-bootx64.efi",
    "/EFI/BOOT/BOOTX64.EFI",
)
"""Loaders of a disk. The default one is last: with a ``fbx64.efi`` beside it, it changes the firmware's boot order."""


def grub_disk_commands(reason: str) -> tuple[str, ...]:
    """Return the commands; after them, if no disk has a loader, the firmware tries its next entry.

    Args:
        reason: reason for people, without characters that GRUB gives a meaning.
    """
    loaders = " ".join(DISK_LOADERS)
    # "search" would print an error for each file that isn't there.
    return (
        f'echo "diskcast: {reason}: booting from the disk"',
        "for partition in (hd*,*); do",
        f"for loader in {loaders}; do",
        'if [ -e "$partition$loader" ]; then set root="$partition"; chainloader "$loader"; boot; fi',
        "done",
        "done",
        "exit 1",
    )
