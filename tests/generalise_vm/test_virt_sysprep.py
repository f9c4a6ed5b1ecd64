"""The oracle of generalised images: virt-sysprep finds nothing left to remove.

virt-sysprep boots a virtual machine of its own around the disk. It needs a kernel: in ``/boot``, or named by
``SUPERMIN_KERNEL`` and ``SUPERMIN_MODULES``, see supermin(1).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Final

import pytest

from protocol.constants import MIB
from protocol.disk.disk_reads import reader_from
from sender.imaging.contents.ext_files import ExtFiles
from sender.imaging.generalise.file_search import FileSearch
from sender.imaging.generalise.generalise_image import generalise_image
from sender.imaging.image_file import ImageFile
from sender.imaging.pack import PackOptions, pack_image
from tests.support.disks.linux_disk import ROOT_MIB, make_linux_disk, make_traces
from tests.unit.sender.imaging.test_pack import raw_of

CLAIMED: Final = (
    "bash-history",
    "crash-data",
    "dhcp-client-state",
    "logfiles",
    "machine-id",
    "mail-spool",
    "pacct-log",
    "ssh-hostkeys",
    "tmp-files",
    "udev-persistent-net",
)
"""Operations of virt-sysprep of which ``images generalise`` leaves nothing; caches and preferences of desktop sessions,
which ``logfiles`` removes too, aren't logs and stay."""

_LIMIT_S: Final = 600
"""Its virtual machine takes a minute without KVM."""

Listing = dict[bytes, tuple[int, int, str]]
"""Mode, size and digest of each file and folder, by path."""


def listing(disk: Path) -> Listing:
    with disk.open("rb") as file:
        file.seek(MIB)
        data = file.read(ROOT_MIB * MIB)
    files = ExtFiles.open_untrusted(
        reader_from(lambda offset, length: data[offset : offset + length], 0, len(data))
    )
    search = FileSearch(files, "/")
    found = {}
    for top in search.matches_untrusted("/*"):
        for each in search.tree_untrusted(top):
            content = search.start_of_untrusted(each, 16 * MIB) if each.is_regular else b""
            size = each.inode.size_bytes if each.is_regular else 0
            found[each.path] = stat.S_IFMT(each.inode.mode), size, hashlib.sha256(content).hexdigest()
    return found


def sysprep(disk: Path) -> None:
    settings = {"LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}
    cache = {"LIBGUESTFS_CACHEDIR": str(disk.parent), "TMPDIR": str(disk.parent)}
    done = subprocess.run(
        ["virt-sysprep", "--format", "raw", "-a", disk, "--operations", ",".join(CLAIMED)],
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        env={**os.environ, **settings, **cache},
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.skipif(
    shutil.which("virt-sysprep") is None, reason="needs virt-sysprep (Debian's guestfs-tools)"
)
def test_virt_sysprep_finds_nothing_left(tmp_path: Path) -> None:
    disk, new = tmp_path / "disk.raw", tmp_path / "new.raw"
    make_linux_disk(disk, make_traces(1))
    image = pack_image(disk, tmp_path / "disk.dci", PackOptions()).path
    with ImageFile.open(image) as opened:
        new.write_bytes(raw_of(generalise_image(opened, tmp_path / "new.dci").path))
    ours = listing(new)

    sysprep(new)
    assert listing(new) == ours

    # The same operations find the traces on the disk as it was, and nothing besides what is removed here.
    before = listing(disk)
    sysprep(disk)
    after = listing(disk)
    removed = {path for path in before if after.get(path) != before[path]}
    assert len(removed) >= 10
    assert {path for path in removed if ours.get(path) == before[path]} == set()
