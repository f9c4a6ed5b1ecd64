"""Small files of an ext2, ext3 or ext4 filesystem, read without mounting it; the bytes are untrusted.

Only as much of the format as a short path needs: extents and the first indirect blocks, linear folders (an indexed
folder can be read as one) and symbolic links. https://docs.kernel.org/filesystems/ext4/
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
_EXTENT_BLOCKS_MAX: Final = 256
"""Blocks of one extent tree that are read: files of the system's configuration have one or none."""

_LINKS_MAX: Final = 8
_ROOT_INODE: Final = 2
_EXTENTS_FLAG: Final = 0x80000
_UNREADABLE_FLAGS: Final = 0x800 | 0x10000000
"""Encrypted, or within the inode."""

_INCOMPATIBLE_64BIT: Final = 0x80
_INCOMPATIBLE_META_BG: Final = 0x10


class ExtError(Exception):
    """The file can't be read: the filesystem is damaged, or has unsupported features."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Inode:
    mode: int
    size_bytes: int
    flags: int
    map: bytes
    """Extents or numbers of blocks, or the target of a short symbolic link."""


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
        try:
            inode = self._find(path)
            if inode is None or not stat.S_ISREG(inode.mode):
                return None
            return b"".join(self._content(inode, bytes_max))[: min(bytes_max, inode.size_bytes)]
        except struct.error as error:
            raise ExtError("a structure is cut short") from error

    def _find(self, path: str) -> _Inode | None:
        """Return the inode of a path, symbolic links followed."""
        folders = [_ROOT_INODE]
        parts = path.strip("/").split("/")[::-1]
        links = 0
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            if part == "..":
                folders = folders[:-1] or [_ROOT_INODE]
                continue
            number = self._lookup(self._inode(folders[-1]), part.encode())
            if number is None:
                return None
            inode = self._inode(number)
            if stat.S_ISLNK(inode.mode):
                links += 1
                if links > _LINKS_MAX:
                    return None
                target = self._link(inode)
                folders = [_ROOT_INODE] if target.startswith("/") else folders
                parts += target.split("/")[::-1]
                continue
            folders.append(number)
        return self._inode(folders[-1])

    def _link(self, inode: _Inode) -> str:
        if inode.size_bytes < 60:
            return inode.map[: inode.size_bytes].decode("utf-8", "replace")
        return b"".join(self._content(inode, self._block_bytes))[: inode.size_bytes].decode(
            "utf-8", "replace"
        )

    def _lookup(self, folder: _Inode, name: bytes) -> int | None:
        if not stat.S_ISDIR(folder.mode):
            return None
        for block in self._content(folder, min(folder.size_bytes, _FOLDER_BYTES_MAX)):
            offset = 0
            while offset + 8 <= len(block):
                number, length, name_length = struct.unpack_from("<IHB", block, offset)
                if number and block[offset + 8 : offset + 8 + name_length] == name:
                    return int(number)
                if length < 8:
                    break
                offset += length
        return None

    def _inode(self, number: int) -> _Inode:
        if not 1 <= number <= self._inode_count:
            raise ExtError("an inode's number is out of range")
        group, index = divmod(number - 1, self._inodes_per_group)
        descriptor = self._read(self._groups_offset + group * self._group_bytes, self._group_bytes)
        (table,) = struct.unpack_from("<I", descriptor, 8)
        if self._group_bytes >= 64:
            table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
        data = self._read(table * self._block_bytes + index * self._inode_bytes, 128)
        (mode,) = struct.unpack_from("<H", data, 0)
        low, high = struct.unpack_from("<I", data, 4)[0], struct.unpack_from("<I", data, 0x6C)[0]
        (flags,) = struct.unpack_from("<I", data, 0x20)
        if flags & _UNREADABLE_FLAGS:
            raise ExtError("a file is encrypted or stored within its inode")
        return _Inode(mode, low | high << 32, flags, data[0x28 : 0x28 + 60])

    def _content(self, inode: _Inode, bytes_max: int) -> Iterator[bytes]:
        """Yield the blocks of a file up to ``bytes_max``; holes are left out."""
        count_max = -(-min(bytes_max, inode.size_bytes) // self._block_bytes)
        blocks = self._extents(inode.map) if inode.flags & _EXTENTS_FLAG else self._numbers(inode.map)
        for count, block in enumerate(blocks):
            if count >= count_max:
                return
            yield self._read(block * self._block_bytes, self._block_bytes)

    def _extents(self, root: bytes) -> Iterator[int]:
        left = _EXTENT_BLOCKS_MAX
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
                if length <= 32768:  # longer: allocated, but never written
                    yield from range(low | high << 32, (low | high << 32) + length)

    def _numbers(self, numbers: bytes) -> Iterator[int]:
        direct = struct.unpack_from("<13I", numbers, 0)
        yield from (block for block in direct[:12] if block)
        if direct[12]:
            table = self._read(direct[12] * self._block_bytes, self._block_bytes)
            yield from (block for (block,) in struct.iter_unpack("<I", table) if block)
