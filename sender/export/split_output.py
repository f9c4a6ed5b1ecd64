"""Files of an export directory, split into pieces that every filesystem can hold."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Final

PIECE_BYTES: Final = 4_096_000_000
"""Longest file, as Clonezilla splits by default: a stick with FAT32 holds it."""

_FILE_MODE: Final = 0o640


class SplitOutput(io.RawIOBase):
    """A file that continues in further files, ``.aa``, ``.ab``, as ``split`` names them."""

    def __init__(self, folder: Path, name: str, piece_bytes: int = PIECE_BYTES) -> None:
        """Create no file yet; each is created by the first byte that it holds."""
        super().__init__()
        self._folder = folder
        self._name = name
        self._piece_bytes = piece_bytes
        self._count = 0
        self._file: io.FileIO | None = None
        self._left = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        """Write all of ``data``."""
        rest = memoryview(data)
        while rest:
            if self._file is None or not self._left:
                self._file = self._next()
            count = self._file.write(rest[: self._left])
            self._left -= count
            rest = rest[count:]
        return len(data)

    def _next(self) -> io.FileIO:
        self._finish()
        first, second = divmod(self._count, 26)
        self._count += 1
        self._left = self._piece_bytes
        return create_file(self._folder / f"{self._name}.{chr(97 + first)}{chr(97 + second)}")

    def _finish(self) -> None:
        if self._file is not None and not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def close(self) -> None:
        """Make the last file durable."""
        self._finish()
        super().close()


def create_file(path: Path) -> io.FileIO:
    """Create a file, open for writing."""
    return io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE), "wb")
