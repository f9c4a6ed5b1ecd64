"""Files that only their owner may read: made once, whole or not at all, never shared by mistake."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError

_BYTES_MAX: Final = 1 << 20
"""Longest file: a certificate chain with its key takes a few KB."""


def ensure_private_file(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return the content of ``path``; if it doesn't exist, make it first.

    Two programs that start at the same time end up with the same file: whichever is first wins.

    Raises:
        ConfigurationError: the file can't be made or read, or others may read it.
    """
    try:
        return read_private_file(path)
    except FileNotFoundError:
        pass
    temporary = _write_temporary(path, make())
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    except OSError as error:
        raise _unusable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return read_private_file(path)


def read_private_file(path: Path) -> bytes:
    """Return the content of ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigurationError: it can't be read, or others may read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_BYTES_MAX)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(path, error) from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigurationError(
            f"{path} holds a secret, and other users may read or change it: run chmod 600 {path}, and renew it if they "
            "may have read it"
        )
    return content


def _write_temporary(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(descriptor, "wb") as file:
            if os.geteuid() == 0:
                # Root may prepare a daemon's files, which the daemon's user must be able to read.
                owner = path.parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unusable(path, error) from error
    return temporary


def _unusable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"can't use {path}: {error.strerror}; make the directory writable for this user"
    )
