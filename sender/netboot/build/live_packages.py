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
    "mtools",
    "ntfs-3g",
    "python3-minimal",
    "smartmontools",
    "udev",
    "util-linux",
    "xfsprogs",
)
"""Python, hardware detection, and the programs that ``--grow``, ``--efi-entry`` and the disk checks run."""

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
    "btrfs", "e2fsck", "efibootmgr", "mdir", "mount", "ntfsresize", "resize2fs", "sfdisk", "sgdisk", "umount",
    "xfs_growfs", "xfs_logprint", "xfs_repair",
    # For a technician at the console, and the agent's doctor.
    "blkid", "blockdev", "dumpe2fs", "ethtool", "fdisk", "findmnt", "ip", "losetup", "lsblk", "ntfs-3g", "smartctl",
    "unshare", "wipefs", "xfs_db",
    # Start of the live system.
    "busybox", "kmod", "modprobe", "udevadm", "depmod", "insmod", "lsmod", "modinfo", "rmmod", "systemd-udevd",
    "python3", "mount.ntfs", "mount.ntfs-3g", "fsck.xfs", "fsck.btrfs", "btrfsck", "mtools", "lspci", "agetty",
    "setsid", "dmesg", "hexdump", "switch_root", "swapon", "mkswap", "tune2fs", "mke2fs", "mkfs.xfs", "mkfs.ext4",
)  # fmt: skip
"""Programs that stay; busybox has the common ones."""

_PYTHON_UNWANTED: Final = (
    "__pycache__", "config-", "ctypes/test", "dbm", "distutils", "ensurepip", "idlelib", "lib2to3",
    "pydoc_data", "sqlite3", "test", "tkinter", "turtledemo", "unittest/test", "venv", "xmlrpc",
    "asyncio/windows", "curses/has_key", "turtle.py", "pydoc.py", "doctest.py", "pdb.py", "_pydecimal.py",
    "imaplib.py", "nntplib.py", "smtpd.py", "smtplib.py", "ftplib.py", "telnetlib.py", "poplib.py",
    "mailbox.py", "pickletools.py", "tracemalloc_", "zipapp.py", "cgi.py",
)  # fmt: skip
"""Start of paths below ``usr/lib/python3.X/``."""
_EXTENSIONS_UNWANTED: Final = (
    "_codecs_", "_crypt", "_dbm", "_sqlite3", "_test", "_tkinter", "_xx", "audioop", "nis", "ossaudiodev",
    "xxlimited",
)  # fmt: skip
_CODE_PAGES: Final = ("IBM850.so", "gconv-modules", "gconv-modules.cache", "gconv-modules-extra.conf")
"""Needed by mtools: it converts names on FAT from code page 850."""
_LIBRARIES: Final = re.compile(r"usr/lib/[a-z0-9_]+-linux-gnu/(?:gconv/(?P<gconv>.+)|(?P<rest>.+))")
_LIBRARY_FOLDERS_KEPT: Final = ("engines-3", "ossl-modules")
_DROPPED: Final = (
    "etc/", "var/", "usr/include/", "usr/share/", "usr/games/", "usr/src/", "usr/lib/systemd/system",
    "usr/lib/systemd/network", "usr/lib/valgrind", "usr/lib/udev/hwdb", "usr/lib/cruft", "usr/lib/init",
    "usr/lib/mime", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d", "usr/lib/girepository", "usr/lib/pcmciautils",
    "usr/lib/xfsprogs", "usr/lib/initramfs-tools", "usr/lib/dracut", "usr/lib/pkgconfig",
    "usr/lib/modprobe.d/aliases", "usr/lib/python3/", "usr/lib/apt", "usr/lib/dpkg", "boot/", "opt/", "srv/",
    "home/", "media/",
)  # fmt: skip
"""Start of paths that nothing in the live system reads."""
_KEPT_CONFIGURATION: Final = (
    "etc/modprobe.d/",
    "etc/iproute2/",
    "usr/share/smartmontools/drivedb",
    "var/lib/smartmontools/drivedb",
)


def is_wanted(path: str) -> bool:
    """Return whether a path of Debian's packages belongs into the live system."""
    if path.startswith(_KEPT_CONFIGURATION):
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
        if match["gconv"]:
            return match["gconv"].startswith(_CODE_PAGES)
        return "/" not in match["rest"] or match["rest"].startswith(_LIBRARY_FOLDERS_KEPT)
    return True
