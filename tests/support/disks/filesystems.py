"""Real filesystems in image files: created, filled, half emptied, checked and compared with their own tools."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from protocol.constants import MIB
from tests.support.disks import exfat
from tests.support.disks.devices import loop_device
from tests.support.network.lab import LIMIT_S, run

Tree = dict[str, str]
"""Content of a filesystem: kind of each path, and a digest of each file."""


@contextlib.contextmanager
def mounted(image: Path, *options: str, program: str = "mount") -> Iterator[Path]:
    """Mount a filesystem beside its image, by the kernel or by another ``program``."""
    point = image.with_name(f"{image.name}.mounted")
    point.mkdir(exist_ok=True)
    with loop_device(image) as device:
        run(program, *options, device, point)
        with contextlib.nullcontext() if program == "mount" else _waited_for(program, device):
            try:
                yield point
            finally:
                run("umount", point)


@contextlib.contextmanager
def _waited_for(program: str, device: Path) -> Iterator[None]:
    """Wait at the end for the FUSE program of ``device`` to exit: it writes its last blocks after umount returns."""
    (pid,) = (
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if (argv := _argv(path)) and argv[0].endswith(program) and str(device) in argv
    )
    server = os.pidfd_open(pid)
    try:
        yield
        exited, _, _ = select.select([server], [], [], LIMIT_S)
        assert exited, f"{program} of {device} didn't exit after umount"
    finally:
        os.close(server)


def _argv(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode(errors="replace").split("\0")
    except OSError:  # the process has just exited
        return []


mounted_ntfs = functools.partial(mounted, program="ntfs-3g")


def contents(seed: int, total_bytes: int) -> dict[str, bytes]:
    """Create files of all sizes, some compressible, of about ``total_bytes`` in total."""
    rng = np.random.default_rng(seed)
    files: dict[str, bytes] = {}
    left = total_bytes
    while left > 0:
        size = int(min(left, 2 ** rng.uniform(5, 22)))
        content = rng.bytes(size) if rng.random() < 0.7 else bytes(rng.integers(65, 70, size, np.uint8))
        files[f"file{len(files):04d}.dat"] = content
        left -= size
    return files


def _fill_folder(folder: Path, seed: int, total_bytes: int) -> None:
    """Write twice the wanted data and delete every other file, so that free space is fragmented and full of garbage."""
    for index, (name, content) in enumerate(contents(seed, 2 * total_bytes).items()):
        place = folder / f"folder{index % 7}"
        place.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
    run("sync", "-f", folder)
    for index, path in enumerate(sorted(folder.glob("folder*/*"))):
        if index % 2:
            path.unlink()


def tree_of(folder: Path) -> Tree:
    """Return a recursive hash of all files."""
    tree: Tree = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            tree[name] = f"link to {path.readlink()}"
        elif path.is_file():
            tree[name] = f"{path.stat().st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        else:
            tree[name] = f"{path.stat().st_mode:o}"
    return tree


@dataclasses.dataclass(frozen=True)
class Filesystem:
    """The tools that create, fill, check and read one kind of filesystem."""

    name: str
    size_bytes: int
    make: tuple[str, ...]
    fill: Callable[[Path], None]
    check: Callable[[Path], None]
    tree: Callable[[Path], Tree]
    partclone: str = ""

    def create(self, path: Path) -> None:
        """Create the filesystem in a new file and fill it."""
        with path.open("wb") as file:
            file.truncate(self.size_bytes)
        run(*self.make, path)
        self.fill(path)


def _fill_kernel(image: Path) -> None:
    with mounted(image) as point:
        _fill_folder(point, 1, 12 * MIB)
        (point / "link").symlink_to("folder1")


def _fill_btrfs(image: Path) -> None:
    """Fill a btrfs with a subvolume, its snapshot, and compressed extents; the snapshot keeps deleted files."""
    with mounted(image, "-o", "compress-force=zstd") as point:
        run("btrfs", "subvolume", "create", point / "sub")
        _fill_folder(point / "sub", 2, 4 * MIB)
        run("btrfs", "subvolume", "snapshot", "-r", point / "sub", point / "snapshot")
        shutil.rmtree(point / "sub" / "folder2")
        _fill_folder(point, 3, 8 * MIB)


def _fill_ntfs(image: Path) -> None:
    with mounted_ntfs(image) as point:
        _fill_folder(point, 4, 8 * MIB)


def _fill_fat(image: Path) -> None:
    source = image.with_name(f"{image.name}.files")
    source.mkdir()
    _fill_folder(source, 5, 4 * MIB)
    folders = sorted(source.iterdir())
    run("mcopy", "-s", "-i", image, *folders, "::/")
    run("mdeltree", "-i", image, "::/folder1")
    run("mdeltree", "-i", image, "::/folder4")
    run("mcopy", "-s", "-i", image, folders[4], "::/")


def _fill_exfat(image: Path) -> None:
    files = dict(list(contents(6, 20 * MIB).items())[:36])
    exfat.write_files(image, files)
    exfat.delete_files(image, set(list(files)[::3]))


def _kernel_tree(image: Path) -> Tree:
    with mounted(image, "-o", "ro") as point:
        return tree_of(point)


def _ntfs_tree(image: Path) -> Tree:
    with mounted_ntfs(image, "-o", "ro") as point:
        return tree_of(point)


def _fat_tree(image: Path) -> Tree:
    target = image.with_name(f"{image.name}.copied")
    target.mkdir()
    run("mcopy", "-s", "-n", "-i", image, "::/", target)
    return tree_of(target)


def _exfat_tree(image: Path) -> Tree:
    found = exfat.read_files(image.read_bytes())
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def _check_ext(image: Path) -> None:
    run("e2fsck", "-f", "-n", image)


def _check_xfs(image: Path) -> None:
    run("xfs_repair", "-n", image)


def _check_btrfs(image: Path) -> None:
    """Check a btrfs including all copies of its blocks, which ``btrfs check`` skips."""
    run("btrfs", "check", "--check-data-csum", image)
    with mounted(image) as point:
        said = run("btrfs", "scrub", "start", "-B", point)
    assert re.search(r"Error summary:\s+no errors found", said), said


def _check_ntfs(image: Path) -> None:
    run("ntfsfix", "--no-action", image)
    content = image.read_bytes()
    assert content[:3] == content[-512:][:3], "the backup boot sector is the last one"
    assert content[3:11] == content[-512:][3:11] == b"NTFS    "


def _check_fat(image: Path) -> None:
    run("fsck.vfat", "-n", image)


def _check_exfat(image: Path) -> None:
    run("fsck.exfat", "-n", image)


def _check_swap(image: Path) -> None:
    with loop_device(image) as device:
        run("swapon", device)
        run("swapoff", device)


def _nothing(_image: Path) -> None:
    pass


def _swap_tree(image: Path) -> Tree:
    return {"header": hashlib.sha256(image.read_bytes()[:4096]).hexdigest()}


FILESYSTEMS = {
    kind.name: kind
    for kind in (
        Filesystem(
            "ext4",
            72 * MIB,
            ("mkfs.ext4", "-q", "-F"),
            _fill_kernel,
            _check_ext,
            _kernel_tree,
            "partclone.extfs",
        ),
        Filesystem(
            "ext2",
            48 * MIB,
            ("mkfs.ext2", "-q", "-F", "-b", "4096"),
            _fill_kernel,
            _check_ext,
            _kernel_tree,
            "partclone.extfs",
        ),
        Filesystem(
            "bigalloc",
            64 * MIB,
            ("mkfs.ext4", "-q", "-F", "-O", "bigalloc", "-C", "65536"),
            _fill_kernel,
            _check_ext,
            _kernel_tree,
        ),
        Filesystem(
            "xfs", 300 * MIB, ("mkfs.xfs", "-q"), _fill_kernel, _check_xfs, _kernel_tree, "partclone.xfs"
        ),
        Filesystem(
            "btrfs",
            160 * MIB,
            ("mkfs.btrfs", "-q"),
            _fill_btrfs,
            _check_btrfs,
            _kernel_tree,
            "partclone.btrfs",
        ),
        Filesystem(
            "ntfs",
            64 * MIB,
            ("mkntfs", "-q", "-Q", "-F"),
            _fill_ntfs,
            _check_ntfs,
            _ntfs_tree,
            "partclone.ntfs",
        ),
        Filesystem(
            "fat12",
            16 * MIB,
            ("mkfs.vfat", "-F", "12", "-s", "16"),
            _fill_fat,
            _check_fat,
            _fat_tree,
            "partclone.fat",
        ),
        Filesystem(
            "fat16", 40 * MIB, ("mkfs.vfat", "-F", "16"), _fill_fat, _check_fat, _fat_tree, "partclone.fat"
        ),
        Filesystem(
            "fat32",
            64 * MIB,
            ("mkfs.vfat", "-F", "32", "-s", "1"),
            _fill_fat,
            _check_fat,
            _fat_tree,
            "partclone.fat",
        ),
        Filesystem(
            "exfat", 64 * MIB, ("mkfs.exfat",), _fill_exfat, _check_exfat, _exfat_tree, "partclone.exfat"
        ),
        Filesystem("swap", 16 * MIB, ("mkswap",), _nothing, _check_swap, _swap_tree),
    )
}


def partclone_free_ranges(kind: Filesystem, image: Path) -> list[tuple[int, int]]:
    """Return the free bytes that partclone itself reports."""
    command = [kind.partclone, "-D", "-q", "-s", str(image), "-o", "-", "-L", "/dev/null"]
    said = subprocess.run(
        command, capture_output=True, check=True, text=True, stdin=subprocess.DEVNULL
    ).stdout
    found = re.findall(r"^(0x\S+)\s+(0x\S+)\s+\?$", said, re.MULTILINE)
    assert found, said
    return [(int(start, 16), int(start, 16) + int(size, 16)) for start, size in found]
