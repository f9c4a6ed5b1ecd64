"""A minimal ext2 filesystem with one file, made without tools, for fuzzing."""

from __future__ import annotations

import struct

BLOCK_BYTES = 1024


def make_ext_image(content: bytes, *, extents: bool) -> bytes:
    """Return a filesystem of 16 KiB with the file ``/etc/os-release``, mapped by extents or by numbers of blocks."""
    image = bytearray(16 * BLOCK_BYTES)
    struct.pack_into("<I", image, 1024, 16)  # inodes
    struct.pack_into("<II", image, 1024 + 0x14, 1, 0)  # first block, block size
    struct.pack_into("<I", image, 1024 + 0x28, 16)  # inodes per group
    struct.pack_into("<H", image, 1024 + 0x38, 0xEF53)
    struct.pack_into("<I", image, 1024 + 0x4C, 1)  # revision
    struct.pack_into("<H", image, 1024 + 0x58, 128)  # inode size
    struct.pack_into("<I", image, 2 * BLOCK_BYTES + 8, 3)  # inode table
    image[1024 + 0x78 : 1024 + 0x7E] = b"golden"
    for number, mode, block, size in (
        (2, 0o040755, 8, BLOCK_BYTES),
        (11, 0o040755, 9, BLOCK_BYTES),
        (12, 0o100644, 10, len(content)),
        (13, 0o120777, 0, len(b"../etc/os-release")),
    ):
        offset = 3 * BLOCK_BYTES + (number - 1) * 128
        struct.pack_into("<HHI", image, offset, mode, 0, size)
        if number == 13:
            image[offset + 0x28 : offset + 0x28 + size] = b"../etc/os-release"
        elif extents:
            struct.pack_into("<I", image, offset + 0x20, 0x80000)
            struct.pack_into("<HHHHI", image, offset + 0x28, 0xF30A, 1, 4, 0, 0)
            struct.pack_into("<IHHI", image, offset + 0x34, 0, 1, 0, block)
        else:
            struct.pack_into("<I", image, offset + 0x28, block)
    _folder(image, 8, ((2, b"."), (2, b".."), (11, b"etc")))
    _folder(image, 9, ((11, b"."), (2, b".."), (12, b"os-release"), (13, b"link")))
    image[10 * BLOCK_BYTES : 10 * BLOCK_BYTES + len(content)] = content
    return bytes(image)


def _folder(image: bytearray, block: int, entries: tuple[tuple[int, bytes], ...]) -> None:
    offset, stop = block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
    for index, (number, name) in enumerate(entries):
        length = stop - offset if index == len(entries) - 1 else 8 + (len(name) + 3 & ~3)
        struct.pack_into("<IHBB", image, offset, number, length, len(name), 2)
        image[offset + 8 : offset + 8 + len(name)] = name
        offset += length
