"""Access to the files of an image directory whose names and content come from anywhere.

Every file is opened relative to the directory's descriptor, by a name without slashes and without following links, so
that no name reaches beyond the directory.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from protocol.constants import KIB
from protocol.errors import ForeignImageError, SourceError
from sender.imaging.foreign.sniff import FOLDER_ENTRIES_MAX

TEXT_BYTES_MAX: Final = 256 * KIB
"""The longest file that is read as a whole: a dump of 128 partitions has 32 KiB, 1 MiB before the first one doesn't
count."""


class ImageDirectory:
    """An open directory.

    Attributes:
        path: as the operator named it.
        names: names of its entries, sorted.
    """

    def __init__(self, path: Path) -> None:
        """Open the directory and list it.

        Raises:
            SourceError: it can't be opened.
            ForeignImageError: it has too many entries.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{path}: can't open the image directory: {error.strerror}") from error
        try:
            names = os.listdir(self._fd)  # noqa: PTH208  of the descriptor
        except OSError as error:
            self.close()
            raise SourceError(f"{path}: can't list the image directory: {error.strerror}") from error
        if len(names) > FOLDER_ENTRIES_MAX:
            self.close()
            raise ForeignImageError(
                f"{path}: more than {FOLDER_ENTRIES_MAX} files: not the directory of one image"
            )
        self.names = tuple(sorted(names))

    def open(self, name: str) -> int:
        """Return a descriptor of the regular file ``name``; the caller closes it.

        Raises:
            ForeignImageError: the name isn't that of a regular file in this directory.
            SourceError: it can't be opened.
        """
        if not name or "/" in name or "\0" in name or name in (".", ".."):
            raise ForeignImageError(
                f"{self.path}: {name!r} isn't a file name: an image has files of its directory only"
            )
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=self._fd)
        except OSError as error:
            if name in self.names:
                raise self._not_regular(name) from error
            raise SourceError(f"{self.path}/{name}: can't open the file: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self._not_regular(name)
        return fd

    def _not_regular(self, name: str) -> ForeignImageError:
        return ForeignImageError(
            f"{self.path}/{name}: not a readable regular file; links are refused, since they may lead to any file"
        )

    @contextlib.contextmanager
    def opened(self, names: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
        """Open several files, and close them at the end; errors as :meth:`open`."""
        with contextlib.ExitStack() as stack:
            fds = []
            for name in names:
                fds.append(self.open(name))
                stack.callback(os.close, fds[-1])
            yield tuple(fds)

    def read(self, name: str, bytes_max: int = TEXT_BYTES_MAX) -> bytes:
        """Return the content of a file.

        Raises:
            ForeignImageError: as :meth:`open`, or it has more than ``bytes_max`` bytes.
            SourceError: it can't be opened or read.
        """
        fd = self.open(name)
        try:
            data = b""
            while len(data) <= bytes_max:
                piece = os.read(fd, bytes_max + 1 - len(data))
                if not piece:
                    return data
                data += piece
        except OSError as error:
            raise SourceError(f"{self.path}/{name}: can't read the file: {error.strerror}") from error
        finally:
            os.close(fd)
        raise ForeignImageError(f"{self.path}/{name}: more than {bytes_max} bytes, too many for such a file")

    def read_if_present(self, name: str, bytes_max: int = TEXT_BYTES_MAX) -> bytes | None:
        """Return the content of a file as :meth:`read`; None if the directory doesn't have it."""
        return self.read(name, bytes_max) if name in self.names else None

    def close(self) -> None:
        """Close the directory."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
