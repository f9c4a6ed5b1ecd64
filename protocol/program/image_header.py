"""The header of an image file on this machine, which survives a power cut while it is signed.

Signing rewrites the first page of a file that may have hundreds of GB. Before, the new page is written to a copy beside
the file; a reader that finds the page torn reads the copy instead.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from protocol.errors import ImageDamagedError, ImageError
from protocol.image.image_format import PAGE_BYTES, ImageHeader, parse_header_untrusted


def header_copy_path(path: Path) -> Path:
    """Return the place of the new header page while an image is being signed."""
    real = Path(os.path.realpath(path))
    return real.with_name(f".{real.name}.header")


def read_header(fd: int, path: Path) -> ImageHeader:
    """Read the header of an open image file; the caller compares its id with the manifest's.

    Raises:
        OSError: the file can't be read.
        ImageFormatError: the file isn't an image, or has a newer format.
        ImageDamagedError: the header is truncated or altered, and there is no copy of it.
    """
    try:
        return parse_header_untrusted(os.pread(fd, PAGE_BYTES, 0))
    except ImageDamagedError:
        with contextlib.suppress(OSError, ImageError):
            return parse_header_untrusted(_read_copy(path))
        # The signer may have finished, and removed its copy, between the two reads.
        return parse_header_untrusted(os.pread(fd, PAGE_BYTES, 0))


def _read_copy(path: Path) -> bytes:
    fd = os.open(header_copy_path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.pread(fd, PAGE_BYTES, 0)
    finally:
        os.close(fd)
