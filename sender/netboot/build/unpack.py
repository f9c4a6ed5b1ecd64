"""Unpacking Debian packages into the live system's root filesystem, without root rights and maintainer scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final

from protocol.errors import ConfigurationError
from sender.netboot.host_programs import find_program, require_programs

MERGED: Final = ("bin", "lib", "lib64", "sbin")
"""Top-level directories that are links into ``usr/``: older packages still have files in them."""
_THREADS: Final = 2
"""dpkg-deb's decompressor is the bottleneck, this process only writes files."""


def prepare_root(root: Path) -> None:
    """Make an empty root filesystem with a merged ``/usr``."""
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")


def unpack_packages(paths: Iterable[Path], root: Path, wanted: Callable[[str], bool]) -> int:
    """Unpack packages, and return the time of the newest file in them.

    Args:
        paths: files of the packages.
        root: the root filesystem, made by :func:`prepare_root`.
        wanted: returns whether a path of the root filesystem is unpacked.

    Raises:
        ConfigurationError: a package is damaged.
    """
    require_programs(["dpkg-deb"], "unpacking packages")
    with ThreadPoolExecutor(_THREADS) as pool:
        return max(pool.map(lambda path: _unpack(path, root, wanted), paths), default=0)


def merged_path(name: str) -> str:
    """Return the path of a package's file in a root filesystem with a merged ``/usr``.

    Raises:
        ValueError: it leads outside.
    """
    path = PurePosixPath(name)
    parts = [part for part in path.parts if part not in (".", "/")]
    if ".." in parts:
        raise ValueError(f"{name!r} leads outside of the root filesystem")
    if parts and parts[0] in MERGED:
        parts.insert(0, "usr")
    return "/".join(parts)


def _unpack(path: Path, root: Path, wanted: Callable[[str], bool]) -> int:
    program = find_program("dpkg-deb")
    assert program is not None
    newest_s = 0
    with subprocess.Popen(
        [program, "--fsys-tarfile", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|", bufsize=1 << 18) as archive:
                for member in archive:
                    newest_s = max(newest_s, int(member.mtime))
                    name = merged_path(member.name)
                    if name and name not in MERGED and wanted(name):
                        _write_member(archive, member, root, name)
        except (tarfile.TarError, ValueError) as error:
            process.kill()
            raise ConfigurationError(
                f"{path.name} is damaged: {error}; remove {path} and build again"
            ) from error
    return newest_s


def _write_member(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path, name: str) -> None:
    target = root / name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        target.unlink(missing_ok=True)
        target.symlink_to(member.linkname)
    elif member.islnk():
        original = root / merged_path(member.linkname)
        if original.exists():  # unwanted, perhaps
            target.unlink(missing_ok=True)
            os.link(original, target)
    elif member.isreg():
        source = archive.extractfile(member)
        assert source is not None
        target.unlink(missing_ok=True)
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 18)
        # Everything belongs to root, and nobody else logs in: no setuid bits.
        target.chmod(0o755 if member.mode & 0o111 else 0o644)
