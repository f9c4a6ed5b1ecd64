"""A watch on a file that notes every open of it, by any process: proof that a program never touched it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_IN_OPEN: Final = 0x20
_IN_MODIFY: Final = 0x2
_IN_CLOSE_WRITE: Final = 0x8
_EVENT_BYTES: Final = 4096


class OpenWatch:
    """An inotify watch on one existing file; a context manager.

    With ``only_writing`` an open for reading doesn't count.
    """

    def __init__(self, path: Path, *, only_writing: bool = False) -> None:
        events = (_IN_CLOSE_WRITE if only_writing else _IN_OPEN) | _IN_MODIFY
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(path), events) < 0:
            raise OSError(ctypes.get_errno(), f"can't watch {path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    @property
    def touched(self) -> bool:
        """Return whether any process has opened or written the file since the last call."""
        try:
            return bool(os.read(self._fd, _EVENT_BYTES))
        except BlockingIOError:
            return False
