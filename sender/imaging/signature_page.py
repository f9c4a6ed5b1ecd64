"""Sign an image file in place: its header page is rewritten so that a power cut leaves the old or the new signature."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError, ImageError, StorageError
from protocol.image.image_format import ImageHeader, check_file_bytes
from protocol.program.image_header import header_copy_path, read_header
from protocol.trust.minisign import PublicKey
from protocol.trust.statement import SignedStatement

_NOT_ALLOWED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY})


def write_signature(path: Path, signed: SignedStatement, signer: PublicKey) -> ImageHeader:
    """Replace the signature of an image file, durably; casts that are reading the file aren't disturbed.

    The new page is first written to a copy beside the file and synced; a page that a power cut tore is then read from
    that copy, see :mod:`protocol.program.image_header`.

    Args:
        path: the image file.
        signed: a statement about this image, with its signature; the caller has verified both.
        signer: the key that made the signature.

    Returns:
        The new header.

    Raises:
        ConfigurationError: the file or its directory can't be written to, or another process is signing it.
        ImageError: the file isn't an image, or is damaged.
        StorageError: the disk is full or failed.
    """
    real = Path(os.path.realpath(path))
    copy = header_copy_path(path)
    try:
        fd = os.open(real, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _typed(path, error) from error
    try:
        _lock(fd, path)
        try:
            header = read_header(fd, path)
            check_file_bytes(header, os.fstat(fd).st_size)
        except ImageError as error:
            raise type(error)(f"{path}: {error}") from error
        header = header.with_signature(signed, signer)
        page = header.to_page()
        _write_copy(copy, page, mode=os.fstat(fd).st_mode & 0o777)
        _write_all(fd, page)
        os.fsync(fd)
        copy.unlink()
        _sync_directory(copy.parent)
    except OSError as error:
        raise _typed(path, error) from error
    finally:
        os.close(fd)
    return header


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigurationError(f"another process is signing {path}: wait for it") from error


def _write_copy(copy: Path, page: bytes, *, mode: int) -> None:
    """Write the page under a temporary name, then rename it: a copy is whole or doesn't exist."""
    temporary = copy.with_name(f"{copy.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            _write_all(fd, page)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(copy)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(copy.parent)


def _write_all(fd: int, page: bytes) -> None:
    done = 0
    while done < len(page):
        done += os.pwrite(fd, page[done:], done)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _typed(path: Path, error: OSError) -> ConfigurationError | ImageError | StorageError:
    if error.errno in (errno.ENOENT, errno.EISDIR):
        return ImageError(f"{path}: can't open the image: {error.strerror}")
    if error.errno in _NOT_ALLOWED:
        return ConfigurationError(
            f"can't write to {path} or its directory: {error.strerror}; sign as the user who owns them"
        )
    return StorageError(
        f"{path}: can't write the signature: {error.strerror}; free some space, or check the disk"
    )
