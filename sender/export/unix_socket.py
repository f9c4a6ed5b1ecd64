"""A listening UNIX socket that only its owner can connect to."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol.errors import AddressInUseError, ConfigurationError

_PATH_BYTES_MAX: Final = 107
"""Longest path of a socket (unix(7))."""

_BACKLOG: Final = 16


@contextlib.contextmanager
def listening_socket(path: Path | None, *, name: str) -> Iterator[tuple[socket.socket, Path]]:
    """Yield a listening socket and its path; the path is removed afterwards.

    Args:
        path: the socket; by default ``NAME`` in a new private directory.
        name: file name of the default.

    Raises:
        AddressInUseError: another program listens there, or a file of another kind has the name.
        ConfigurationError: the socket can't be created there.
    """
    with contextlib.ExitStack() as stack:
        if path is None:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="diskcast-", dir=os.environ.get("XDG_RUNTIME_DIR"))
            )
            path = Path(folder) / name
        path = Path(os.path.abspath(path))  # noqa: PTH100  the last component must not be resolved
        if len(os.fsencode(path)) > _PATH_BYTES_MAX:
            raise ConfigurationError(
                f"{path}: the path of a socket has at most {_PATH_BYTES_MAX} bytes; choose a shorter one"
            )
        listener = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
        _remove_stale(path)
        # fchmod before bind gives the socket its mode from the start; the umask can only take more away.
        os.fchmod(listener.fileno(), 0o600)
        try:
            listener.bind(os.fspath(path))
        except OSError as error:
            raise ConfigurationError(f"{path}: can't create the socket: {error.strerror}") from error
        stack.callback(path.unlink, missing_ok=True)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        yield listener, path


def _remove_stale(path: Path) -> None:
    """Remove the socket of a program that was killed."""
    try:
        status = path.lstat()
    except OSError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise AddressInUseError(f"{path} exists and isn't a socket: choose another path")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise AddressInUseError(f"{path}: another program listens there; choose another path")
