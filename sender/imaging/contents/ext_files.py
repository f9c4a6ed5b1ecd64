"""Small files of an ext2, ext3 or ext4 filesystem, read without mounting it; the bytes are untrusted.

Only as much of the format as paths need: extents and indirect blocks, linear folders (an indexed folder can be read as
one) and symbolic links. https://docs.kernel.org/filesystems/ext4/
"""

from __future__ import annotations

import dataclasses
import stat
import struct
from collections.abc import Iterator
from typing import Final, Self

from protocol.constants import KIB, MIB
from protocol.disk.disk_reads import Read

_FOLDER_BYTES_MAX: Final = 4 * MIB
"""Part of a folder that is searched: more than a hundred thousand short names."""

_EXTENT_DEPTH_MAX: Final = 5  # as in the kernel
_MAP_BLOCKS_MAX: Final = 4096
"""Blocks of one file's map that are read: a swap file of 16 GiB without extents. Configuration files have none."""

_RANGES_BLOCKS_MAX: Final = 1 << 24
"""Blocks of one file whose place is looked up: a swap file of 64 GiB. A journal has at most 10 million."""

_UNWRITTEN_LENGTH: Final = 1 << 15
"""Added to the length of an extent that is allocated, and reads as zeros because no file was written there."""

_LINKS_MAX: Final = 8
_ATTRIBUTES_MAGIC: Final = b"\x00\x00\x02\xea"
ROOT_INODE: Final = 2
JOURNAL_INODE: Final = 8
_EXTENTS_FLAG: Final = 0x80000
_UNREADABLE_FLAGS: Final = 0x800 | 0x10000000
"""Encrypted, or within the inode."""

_INCOMPATIBLE_64BIT: Final = 0x80
_INCOMPATIBLE_META_BG: Final = 0x10


class ExtError(Exception):
    """The file can't be read: the filesystem is damaged, or has unsupported features."""


@dataclasses.dataclass(frozen=True, slots=True)
class ExtInode:
    """An inode.

    Attributes:
        map: extents or numbers of blocks, or the target of a short symbolic link.
        has_attributes: whether it has extended attributes.
    """

    mode: int
    link_count: int
    size_bytes: int
    flags: int
    map: bytes
    user_id: int
    group_id: int
    has_attributes: bool


class ExtFiles:
    """Reader of one filesystem."""

    def __init__(
        self, read: Read, block_bytes: int, inodes: tuple[int, int, int], groups: tuple[int, int]
    ) -> None:
        """Use :meth:`open_untrusted`."""
        self._read = read
        self._block_bytes = block_bytes
        self._inode_count, self._inodes_per_group, self._inode_bytes = inodes
        self._groups_offset, self._group_bytes = groups

    @classmethod
    def open_untrusted(cls, read: Read) -> Self:
        """Read the superblock.

        Raises:
            ExtError: it is damaged, or has unsupported features.
        """
        data = read(KIB, KIB)
        try:
            (inode_count,) = struct.unpack_from("<I", data, 0)
            first_block, log_size = struct.unpack_from("<II", data, 0x14)
            (inodes_per_group,) = struct.unpack_from("<I", data, 0x28)
            magic, revision = struct.unpack_from("<H", data, 0x38)[0], struct.unpack_from("<I", data, 0x4C)[0]
            (inode_bytes,) = struct.unpack_from("<H", data, 0x58)
            (incompatible,) = struct.unpack_from("<I", data, 0x60)
            (group_bytes,) = struct.unpack_from("<H", data, 0xFE)
        except struct.error as error:
            raise ExtError("its superblock is cut short") from error
        inode_bytes = inode_bytes if revision else 128
        group_bytes = group_bytes if incompatible & _INCOMPATIBLE_64BIT else 32
        if magic != 0xEF53 or log_size > 6 or not inodes_per_group or not 128 <= inode_bytes <= 64 * KIB:
            raise ExtError("its superblock is damaged")
        if incompatible & _INCOMPATIBLE_META_BG or not 32 <= group_bytes <= KIB:
            raise ExtError("its group descriptors have an unsupported form")
        block_bytes = KIB << log_size
        groups = (first_block + 1) * block_bytes, group_bytes
        return cls(read, block_bytes, (inode_count, inodes_per_group, inode_bytes), groups)

    def read_file_untrusted(self, path: str, bytes_max: int) -> bytes | None:
        """Return the first ``bytes_max`` bytes of a file; None if there is no regular file of this path.

        Raises:
            ExtError: the filesystem is damaged, or has unsupported features.
        """
        inode = self.find_untrusted(path)
        return None if inode is None else self.read_inode_untrusted(inode, bytes_max)

    def find_untrusted(self, path: str) -> ExtInode | None:
        """Return the inode of a regular file, symbolic links followed; None if there is none of this path.

        Raises:
            ExtError: the filesystem is damaged, or has unsupported features.
        """
        try:
            inode = self._find(path)
        except struct.error as error:
            raise ExtError("a structure is cut short") from error
        return inode if inode is not None and stat.S_ISREG(inode.mode) else None

    def entry_untrusted(self, path: str) -> ExtInode | None:
        """Return the inode that a path names, of a symbolic link at its end itself; None if there is nothing.

        Raises:
            ExtError: the filesystem is damaged, or has unsupported features.
        """
        try:
            return self._find(path, follow_last=False)
        except struct.error as error:
            raise ExtError("a structure is cut short") from error

    def read_inode_untrusted(self, inode: ExtInode, bytes_max: int) -> bytes:
        """Return the first ``bytes_max`` bytes of a regular file; errors as :meth:`read_file_untrusted`."""
        try:
            return b"".join(self._content(inode, bytes_max))[: min(bytes_max, inode.size_bytes)]
        except struct.error as error:
            raise ExtError("a structure is cut short") from error

    def inode_untrusted(self, number: int) -> ExtInode:
        """Return an inode; :data:`ROOT_INODE` is the root folder's.

        Raises:
            ExtError: the filesystem is damaged, or has unsupported features.
        """
        try:
            return self._inode(number)
        except struct.error as error:
            raise ExtError("a structure is cut short") from error

    def entries_untrusted(self, folder: ExtInode) -> list[tuple[bytes, int]]:
        """Return names and inodes of a folder's entries, without ``.`` and ``..``.

        Raises:
            ExtError: the folder is too large, damaged, or of an unsupported form.
        """
        if folder.size_bytes > _FOLDER_BYTES_MAX:
            raise ExtError("a folder is too large")
        try:
            blocks = list(self._content(folder, folder.size_bytes))
            found = [entry for block in blocks for entry in _entries(block)]
        except struct.error as error:
            raise ExtError("a structure is cut short") from error
        return [(name, number) for name, number in found if name not in (b".", b"..")]

    def ranges_untrusted(self, inode: ExtInode) -> list[tuple[int, int]]:
        """Return the ranges of the filesystem, in bytes, that a file's blocks occupy, in the order of the file.

        Unwritten blocks are among them: the kernel swaps to a file's blocks, and the filesystem doesn't notice.

        Raises:
            ExtError: its map is too large, damaged, or of an unsupported form.
        """
        ranges: list[tuple[int, int]] = []
        left = min(_RANGES_BLOCKS_MAX, -(-inode.size_bytes // self._block_bytes))
        try:
            for block, count in self._runs(inode, with_unwritten=True):
                left -= count
                if left < 0:
                    raise ExtError("a file has more blocks than its size allows, or is too large")
                start, stop = block * self._block_bytes, (block + count) * self._block_bytes
                if ranges and ranges[-1][1] == start:
                    ranges[-1] = ranges[-1][0], stop
                else:
                    ranges.append((start, stop))
        except struct.error as error:
            raise ExtError("a structure is cut short") from error
        return ranges

    def folder_names_untrusted(self, path: str, count_max: int) -> list[str]:
        """Return the first ``count_max`` names in a folder, without ``.`` and ``..``; none if there is no such folder.

        Raises:
            ExtError: as :meth:`entries_untrusted`.
        """
        try:
            inode = self._find(path)
        except struct.error as error:
            raise ExtError("a structure is cut short") from error
        if inode is None or not stat.S_ISDIR(inode.mode):
            return []
        return [name.decode("utf-8", "replace") for name, _ in self.entries_untrusted(inode)[:count_max]]

    def _find(self, path: str, *, follow_last: bool = True) -> ExtInode | None:
        """Return the inode of a path, symbolic links within it followed."""
        folders = [ROOT_INODE]
        parts = path.strip("/").split("/")[::-1]
        links = 0
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            if part == "..":
                folders = folders[:-1] or [ROOT_INODE]
                continue
            number = self._lookup(self._inode(folders[-1]), part.encode())
            if number is None:
                return None
            inode = self._inode(number)
            if stat.S_ISLNK(inode.mode) and (parts or follow_last):
                links += 1
                if links > _LINKS_MAX:
                    return None
                target = self._link(inode)
                folders = [ROOT_INODE] if target.startswith("/") else folders
                parts += target.split("/")[::-1]
                continue
            folders.append(number)
        return self._inode(folders[-1])

    def _link(self, inode: ExtInode) -> str:
        if inode.size_bytes < 60:
            return inode.map[: inode.size_bytes].decode("utf-8", "replace")
        return b"".join(self._content(inode, self._block_bytes))[: inode.size_bytes].decode(
            "utf-8", "replace"
        )

    def _lookup(self, folder: ExtInode, name: bytes) -> int | None:
        if not stat.S_ISDIR(folder.mode):
            return None
        for block in self._content(folder, min(folder.size_bytes, _FOLDER_BYTES_MAX)):
            for entry_name, number in _entries(block):
                if entry_name == name:
                    return number
        return None

    def _inode(self, number: int) -> ExtInode:
        if not 1 <= number <= self._inode_count:
            raise ExtError("an inode's number is out of range")
        group, index = divmod(number - 1, self._inodes_per_group)
        descriptor = self._read(self._groups_offset + group * self._group_bytes, self._group_bytes)
        (table,) = struct.unpack_from("<I", descriptor, 8)
        if self._group_bytes >= 64:
            table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
        data = self._read(table * self._block_bytes + index * self._inode_bytes, self._inode_bytes)
        (mode,) = struct.unpack_from("<H", data, 0)
        low, high = struct.unpack_from("<I", data, 4)[0], struct.unpack_from("<I", data, 0x6C)[0]
        (flags,) = struct.unpack_from("<I", data, 0x20)
        (link_count,) = struct.unpack_from("<H", data, 0x1A)
        user_low, group_low = struct.unpack_from("<H", data, 2)[0], struct.unpack_from("<H", data, 0x18)[0]
        user_high, group_high = struct.unpack_from("<HH", data, 0x78)
        (attributes_block,) = struct.unpack_from("<I", data, 0x68)
        return ExtInode(
            mode,
            link_count,
            low | high << 32,
            flags,
            data[0x28 : 0x28 + 60],
            user_low | user_high << 16,
            group_low | group_high << 16,
            bool(attributes_block) or _has_inner_attributes(data),
        )

    def _content(self, inode: ExtInode, bytes_max: int) -> Iterator[bytes]:
        """Yield the blocks of a file up to ``bytes_max``; holes are left out."""
        count_max = -(-min(bytes_max, inode.size_bytes) // self._block_bytes)
        for count, block in enumerate(self._blocks(inode)):
            if count >= count_max:
                return
            yield self._read(block * self._block_bytes, self._block_bytes)

    def _blocks(self, inode: ExtInode) -> Iterator[int]:
        """Yield the numbers of a file's blocks; holes and unwritten blocks are left out."""
        for block, count in self._runs(inode, with_unwritten=False):
            yield from range(block, block + count)

    def _runs(self, inode: ExtInode, *, with_unwritten: bool) -> Iterator[tuple[int, int]]:
        """Yield first block and number of blocks of each run of a file's blocks."""
        if inode.flags & _UNREADABLE_FLAGS:
            raise ExtError("a file is encrypted or stored within its inode")
        if inode.flags & _EXTENTS_FLAG:
            return self._extents(inode.map, with_unwritten=with_unwritten)
        return self._numbers(inode.map)

    def _extents(self, root: bytes, *, with_unwritten: bool) -> Iterator[tuple[int, int]]:
        left = _MAP_BLOCKS_MAX
        pending = [(root, _EXTENT_DEPTH_MAX)]
        while pending:
            node, depth_max = pending.pop()
            magic, count, _, depth = struct.unpack_from("<HHHH", node, 0)
            if magic != 0xF30A or depth > depth_max or 12 + 12 * count > len(node):
                raise ExtError("an extent tree is damaged")
            if depth:
                children = []
                for index in range(count):
                    low, high = struct.unpack_from("<IH", node, 16 + 12 * index)
                    left -= 1
                    if left < 0:
                        raise ExtError("an extent tree is too large")
                    children.append(
                        (self._read((low | high << 32) * self._block_bytes, self._block_bytes), depth - 1)
                    )
                pending += children[::-1]
                continue
            for index in range(count):
                length, high, low = struct.unpack_from("<HHI", node, 16 + 12 * index)
                if length > _UNWRITTEN_LENGTH:
                    length = length - _UNWRITTEN_LENGTH if with_unwritten else 0
                if length:
                    yield low | high << 32, length

    def _numbers(self, numbers: bytes) -> Iterator[tuple[int, int]]:
        direct = struct.unpack_from("<15I", numbers, 0)
        yield from ((block, 1) for block in direct[:12] if block)
        left = _MAP_BLOCKS_MAX
        pending = [(block, depth) for depth, block in enumerate(direct[12:]) if block][::-1]
        while pending:
            table, depth = pending.pop()
            left -= 1
            if left < 0:
                raise ExtError("a file's map is too large")
            data = self._read(table * self._block_bytes, self._block_bytes)
            found = [block for (block,) in struct.iter_unpack("<I", data) if block]
            if depth:
                pending += [(block, depth - 1) for block in found[::-1]]
            else:
                yield from ((block, 1) for block in found)


def _entries(block: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield names and inodes of the entries in a block of a folder."""
    offset = 0
    while offset + 8 <= len(block):
        number, length, name_length = struct.unpack_from("<IHB", block, offset)
        if number:
            yield block[offset + 8 : offset + 8 + name_length], number
        if length < 8:
            return
        offset += length


def _has_inner_attributes(inode: bytes) -> bool:
    """Return whether extended attributes follow the fields of an inode of more than 128 bytes."""
    if len(inode) < 132:
        return False
    start = 128 + struct.unpack_from("<H", inode, 128)[0]
    return inode[start : start + 4] == _ATTRIBUTES_MAGIC
