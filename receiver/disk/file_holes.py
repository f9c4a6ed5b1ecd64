"""Holes of a target file: content that another program cut off leaves holes where the image has bytes."""

from __future__ import annotations

import errno
import os

import numpy as np
from numpy.typing import NDArray


def blocks_in_holes(
    fd: int, blocks: NDArray[np.bool_], block_bytes: int, size_bytes: int
) -> NDArray[np.int64]:
    """Return those of ``blocks`` that lie entirely in holes of a file, ascending (lseek(2)).

    A block that was written isn't in a hole unless the file was truncated or punched since.

    Args:
        fd: the file; its position is changed. Filesystems without holes have none to find.
        blocks: ``bool[n]`` of the blocks to look for.
        block_bytes: size of every block but the last.
        size_bytes: end of the last block.

    Raises:
        OSError: the filesystem failed.
    """
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    position = 0
    while position < size_bytes:
        hole_start = os.lseek(fd, position, os.SEEK_HOLE)
        if hole_start >= size_bytes:
            break
        try:
            position = os.lseek(fd, hole_start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data up to the end
                raise
            position = size_bytes
        first = -(-hole_start // block_bytes)
        stop = position // block_bytes if position < size_bytes else blocks.size
        found.append(first + np.flatnonzero(blocks[first:stop]))
    return np.concatenate(found)
