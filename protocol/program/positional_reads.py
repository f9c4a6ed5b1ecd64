"""Reads of whole ranges of an open file, from any thread."""

from __future__ import annotations

import os


class PositionalReadError(OSError):
    """A read failed.

    Attributes:
        offset_bytes: first byte that couldn't be read.
    """

    def __init__(self, error: OSError, offset_bytes: int) -> None:
        super().__init__(error.errno, error.strerror)
        self.offset_bytes = offset_bytes


def read_at(fd: int, into: memoryview, offset_bytes: int) -> int:
    """Fill ``into`` with the bytes from ``offset_bytes``; the file's position is neither used nor changed.

    Returns:
        Bytes read, fewer than requested only at the end of the file.

    Raises:
        PositionalReadError: the disk failed; what was read before it is in ``into``.
    """
    done = 0
    while done < len(into):
        try:
            count = os.preadv(fd, [into[done:]], offset_bytes + done)
        except OSError as error:
            raise PositionalReadError(error, offset_bytes + done) from error
        if count == 0:
            break
        done += count
    return done
