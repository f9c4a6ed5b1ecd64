"""Search for files by patterns in an ext filesystem of an image, without mounting it; the bytes are untrusted."""

from __future__ import annotations

import dataclasses
import fnmatch
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from sender.imaging.contents.ext_files import ROOT_INODE, ExtError, ExtFiles, ExtInode

ENTRIES_MAX: Final = 1_000_000
"""Entries of folders that a search reads: more than a system's logs and homes have."""

_DEPTH_MAX: Final = 100


@dataclasses.dataclass(frozen=True, slots=True)
class FoundFile:
    """An entry of a folder, and its inode."""

    path: bytes
    number: int
    inode: ExtInode

    @property
    def is_folder(self) -> bool:
        """True for a folder itself, not for a link to one."""
        return stat.S_ISDIR(self.inode.mode)

    @property
    def is_regular(self) -> bool:
        """True for a regular file."""
        return stat.S_ISREG(self.inode.mode)


class FileSearch:
    """Search in one filesystem, which is mounted somewhere in its system."""

    def __init__(self, files: ExtFiles, mount_point: str) -> None:
        """Search ``files``, mounted at ``mount_point``."""
        self._files = files
        self._mount = _parts(mount_point)
        self._left = ENTRIES_MAX
        self._folders: dict[int, bytes] = {}

    def matches_untrusted(self, pattern: str) -> Iterator[FoundFile]:
        """Yield the entries that match a pattern of :class:`sender.imaging.generalise.traces.FileRule`.

        Raises:
            ExtError: the filesystem is damaged, has unsupported features, or too many entries.
        """
        parts = self._within(_parts(pattern))
        if parts:
            yield from self._matches(self._root(), parts)

    def tree_untrusted(self, found: FoundFile) -> Iterator[FoundFile]:
        """Yield everything below ``found`` and then itself: each folder after its content; errors as above."""
        if found.is_folder:
            for entry in self._entries(found, "*"):
                yield from self.tree_untrusted(entry)
        yield found

    def start_of_untrusted(self, found: FoundFile, length: int) -> bytes:
        """Return the first bytes of a regular file; errors as above."""
        return self._files.read_inode_untrusted(found.inode, length)

    def _root(self) -> FoundFile:
        return FoundFile(b"", ROOT_INODE, self._files.inode_untrusted(ROOT_INODE))

    def _within(self, parts: Sequence[str]) -> Sequence[str]:
        """Return the rest of a pattern below the mount point; empty if it can't match there."""
        for index, name in enumerate(self._mount):
            if index >= len(parts):
                return ()
            if parts[index] == "**":
                return parts[index:]
            if not fnmatch.fnmatchcase(name, parts[index]):
                return ()
        return parts[len(self._mount) :]

    def _matches(self, folder: FoundFile, parts: Sequence[str]) -> Iterator[FoundFile]:
        if parts[0] == "**":
            yield from (found for found in self.tree_untrusted(folder) if found.is_regular)
            return
        for entry in self._entries(folder, parts[0]):
            if len(parts) == 1:
                yield entry
            elif entry.is_folder:
                yield from self._matches(entry, parts[1:])

    def _entries(self, folder: FoundFile, pattern: str) -> Iterator[FoundFile]:
        """Yield the entries whose names match; folders are read completely before the first one."""
        if self._folders.setdefault(folder.number, folder.path) != folder.path:
            raise ExtError("a folder has two names")  # a loop never ends
        if folder.path.count(b"/") > _DEPTH_MAX:
            raise ExtError("its folders are nested too deeply")
        for name, number in self._files.entries_untrusted(folder.inode):
            self._left -= 1
            if self._left < 0:
                raise ExtError("its folders have too many entries")
            if not name or b"/" in name or b"\0" in name:
                raise ExtError("a name in a folder is invalid")
            if not fnmatch.fnmatchcase(name.decode("utf-8", "surrogateescape"), pattern):
                continue
            yield FoundFile(folder.path + b"/" + name, number, self._files.inode_untrusted(number))


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]
