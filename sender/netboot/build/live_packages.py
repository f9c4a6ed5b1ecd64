"""The Debian packages of the live system, and the parts of them that it doesn't need."""

from __future__ import annotations

import re
from typing import Final

PACKAGES: Final = (
    "btrfs-progs",
    "busybox-static",
    "e2fsprogs",
    "efibootmgr",
    "ethtool",
    "fdisk",
    "gdisk",
    "iproute2",
    "kmod",
    "libisal2",
    "libpython3-stdlib",
    "mount",
    "ntfs-3g",
    "partclone",
    "python3-minimal",
    "smartmontools",
    "udev",
    "util-linux",
    "xfsprogs",
)
"""Python, hardware detection, and the programs that ``--grow``, ``--efi-entry``, captures and the disk checks run."""

FIRMWARE_PACKAGES: Final = (
    "firmware-bnx2", "firmware-bnx2x", "firmware-cavium", "firmware-intel-misc", "firmware-linux-free",
    "firmware-linux-nonfree", "firmware-marvell-prestera", "firmware-misc-nonfree", "firmware-myricom",
    "firmware-netronome", "firmware-netxen", "firmware-qlogic", "firmware-realtek", "firmware-siano",
)  # fmt: skip
"""Packages that may have firmware of network cards and disk controllers; their names differ between releases."""

LOADER_PACKAGES: Final = ("ipxe", "grub-efi-amd64-signed", "shim-signed")

KERNEL_PACKAGES: Final = {"generic": "linux-image-amd64", "cloud": "linux-image-cloud-amd64"}
"""The package that depends on the newest kernel of each flavour."""

PROGRAMS: Final = (
    # Partition tables, filesystems and firmware: what the agent runs (receiver/disk/fit/programs.py).
    "btrfs", "e2fsck", "efibootmgr", "mount", "ntfsresize", "resize2fs", "sfdisk", "sgdisk", "umount",
    "xfs_growfs", "xfs_logprint", "xfs_repair",
    # Free space of a disk that is captured (protocol/packing/filesystems/free_space.py).
    "dumpe2fs", "ntfscat", "ntfsinfo", "partclone.exfat", "partclone.ntfs", "xfs_db",
    # Start of the live system.
    "busybox", "depmod", "insmod", "ip", "kmod", "lsmod", "modinfo", "modprobe", "python3", "rmmod", "udevadm",
    # For a technician at the console.
    "blkid", "blockdev", "dmesg", "ethtool", "fdisk", "findmnt", "losetup", "lsblk", "mount.ntfs",
    "mount.ntfs-3g", "ntfs-3g", "smartctl", "unshare", "wipefs",
)  # fmt: skip
"""Programs that stay; busybox has the common ones."""

_PYTHON_UNWANTED: Final = (
    "__pycache__", "_pydecimal.py", "asyncio/", "cgi.py", "config-", "ctypes/test", "curses/", "dbm", "distutils",
    "doctest.py", "ensurepip", "ftplib.py", "idlelib", "imaplib.py", "lib2to3", "mailbox.py", "nntplib.py",
    "pdb.py", "pickletools.py", "poplib.py", "pydoc.py", "pydoc_data", "smtpd.py", "smtplib.py", "sqlite3",
    "telnetlib.py", "test/", "tkinter", "turtle.py", "turtledemo", "unittest/", "venv", "xmlrpc", "zipapp.py",
)  # fmt: skip
"""Start of paths below ``usr/lib/python3.X/``."""
_EXTENSIONS_UNWANTED: Final = (
    "_asyncio", "_codecs_", "_crypt", "_curses", "_dbm", "_sqlite3", "_test", "_tkinter", "_xx", "audioop", "nis",
    "ossaudiodev", "readline", "xxlimited",
)  # fmt: skip
_LIBRARIES: Final = re.compile(r"usr/lib/[a-z0-9_]+-linux-gnu/(?P<name>.+)")
_LIBRARY_FOLDERS_KEPT: Final = ("engines-3", "ossl-modules", "systemd/libsystemd-shared")
_DROPPED: Final = (
    "etc/", "var/", "usr/include/", "usr/share/", "usr/games/", "usr/src/", "usr/lib/systemd/",
    "usr/lib/valgrind", "usr/lib/udev/hwdb", "usr/lib/cruft", "usr/lib/init",
    "usr/lib/mime", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d", "usr/lib/girepository", "usr/lib/pcmciautils",
    "usr/lib/xfsprogs", "usr/lib/initramfs-tools", "usr/lib/dracut", "usr/lib/pkgconfig",
    "usr/lib/modprobe.d/aliases", "usr/lib/python3/", "usr/lib/apt", "usr/lib/dpkg", "boot/", "opt/", "srv/",
    "home/", "media/",
)  # fmt: skip
"""Start of paths that nothing in the live system reads."""
_KEPT: Final = (
    "usr/lib/systemd/systemd-udevd",
    "etc/modprobe.d/",
    "etc/iproute2/",
    "usr/share/smartmontools/drivedb",
    "var/lib/smartmontools/drivedb",
)


def is_wanted(path: str) -> bool:
    """Return whether a path of Debian's packages belongs into the live system."""
    if path.startswith(_KEPT):
        return True
    if path.startswith(_DROPPED):
        return False
    folder, _, name = path.rpartition("/")
    if folder in ("usr/bin", "usr/sbin"):
        return name in PROGRAMS or name.startswith("python3")
    if match := re.fullmatch(r"usr/lib/python3\.\d+/(.+)", path):
        inside = match[1]
        if inside.startswith("lib-dynload/"):
            return not inside.removeprefix("lib-dynload/").startswith(_EXTENSIONS_UNWANTED)
        return not inside.startswith(_PYTHON_UNWANTED)
    if match := _LIBRARIES.fullmatch(path):
        return "/" not in match["name"] or match["name"].startswith(_LIBRARY_FOLDERS_KEPT)
    return True
