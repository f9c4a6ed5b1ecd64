"""The archive format of initrds: cpio's "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import BinaryIO, Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_ALIGNMENT_BYTES: Final = 4
_ARCHIVE_ALIGNMENT_BYTES: Final = 512
"""Another archive may follow; boot loaders and the kernel align it to four bytes at least."""
_FILE_BYTES_MAX: Final = (1 << 32) - 1


class CpioWriter:
    """Writer of an archive whose bytes depend on its entries only: everything belongs to root, and has one time."""

    def __init__(self, file: BinaryIO, time_s: int) -> None:
        """Start an archive.

        Args:
            file: where to write it, from its start.
            time_s: the modification time of every entry.
        """
        self._file = file
        self._time_s = time_s
        self._inode = 0
        self._written_bytes = 0

    def add_directory(self, name: str) -> None:
        """Add a directory; its parents must come before it."""
        self._header(name, stat.S_IFDIR | 0o755, 0, links=2)

    def add_bytes(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._header(name, stat.S_IFREG | mode, len(content))
        self._write(content)
        self._pad(_ALIGNMENT_BYTES)

    def add_file(self, name: str, path: Path, mode: int = 0o644) -> None:
        """Add a copy of a file of this machine."""
        with path.open("rb") as source:
            size_bytes = os.fstat(source.fileno()).st_size
            self._header(name, stat.S_IFREG | mode, size_bytes)
            shutil.copyfileobj(source, self._file, 1 << 20)
        self._written_bytes += size_bytes
        self._pad(_ALIGNMENT_BYTES)

    def add_symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        content = target.encode()
        self._header(name, stat.S_IFLNK | 0o777, len(content))
        self._write(content)
        self._pad(_ALIGNMENT_BYTES)

    def add_character_device(self, name: str, major: int, minor: int) -> None:
        """Add a device node."""
        self._header(name, stat.S_IFCHR | 0o600, 0, device=(major, minor))

    def finish(self) -> None:
        """Write the end of the archive; the file stays open."""
        self._inode = -1
        self._time_s = 0
        self._header(_TRAILER, 0, 0)
        self._pad(_ARCHIVE_ALIGNMENT_BYTES)

    def _header(
        self, name: str, mode: int, size_bytes: int, *, links: int = 1, device: tuple[int, int] = (0, 0)
    ) -> None:
        if size_bytes > _FILE_BYTES_MAX:
            raise ValueError(f"{name} is too large for a cpio archive")
        encoded = name.encode() + b"\0"
        self._inode += 1
        # inode, mode, uid, gid, links, time, size, device of the file system (two), of the node (two), name, checksum
        fields = (self._inode, mode, 0, 0, links, self._time_s, size_bytes, 0, 0, *device, len(encoded), 0)
        self._write(_MAGIC + b"".join(b"%08x" % field for field in fields) + encoded)
        self._pad(_ALIGNMENT_BYTES)

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._written_bytes += len(content)

    def _pad(self, alignment_bytes: int) -> None:
        self._write(bytes(-self._written_bytes % alignment_bytes))
