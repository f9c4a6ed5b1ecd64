"""Debian's programs that tests use: one that is missing skips its tests with the reason, or fails them in CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_PACKAGES = {
    "busybox": "busybox-static",
    "chromium": "chromium",
    "curl": "curl",
    "dnsmasq": "dnsmasq-base",
    "grub-script-check": "grub-common",
    "initdb": "postgresql",
    "mcopy": "mtools",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mmd": "mtools",
    "pg_ctl": "postgresql",
    "postgres": "postgresql",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "psql": "postgresql-client",
    "qemu-system-x86_64": "qemu-system-x86",
    "sfdisk": "fdisk",
    "systemd-analyze": "systemd",
    "systemd-notify": "systemd",
    "systemd-sysusers": "systemd",
    "systemd-tmpfiles": "systemd",
    "unsquashfs": "squashfs-tools",
}
"""Program to the package that has it."""


def find_program(name: str) -> Path | None:
    """Where ``name`` is: in PATH, in the system's folders, or among PostgreSQL's own, the newest version first."""
    folders = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/sbin", "/bin"))
    if found := shutil.which(name, path=folders):
        return Path(found)
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    for folder in sorted(versions, key=lambda path: int(path.parent.name), reverse=True):
        if os.access(folder / name, os.X_OK):
            return folder / name
    return None


def require_program(name: str) -> Path:
    """The path of a program that this test can't do without."""
    found = find_program(name)
    if found is None:
        reason = f"{name} isn't installed: apt install {_PACKAGES.get(name, name)}"
        if os.environ.get("DISKCAST_REQUIRE_PRIVILEGED_TESTS"):
            pytest.fail(f"{reason}; CI may skip nothing", pytrace=False)
        pytest.skip(reason)
    return found
