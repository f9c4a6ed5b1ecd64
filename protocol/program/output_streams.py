"""Standard output and error of programs whose work must not end with their output."""

from __future__ import annotations

import atexit
import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_STALLED_S: Final = 1.0
"""A reader that takes nothing for this long, such as a stopped pager, must not stop a cast; later writes don't wait."""


class _DroppingOutput(io.FileIO):
    """A file descriptor whose failed writes are counted and dropped.

    Attributes:
        dropped_count: writes that were dropped.
        reason: the first failure.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)
        self._stalled = False
        self._torn = False
        self.dropped_count = 0
        self.reason = ""

    def write(self, data: Buffer) -> int:
        """Write all of ``data``, or drop the rest; return its length."""
        pending = memoryview(data).cast("B")
        length = len(pending)
        if self._torn:  # a line of which only the start was written must not run into this one
            pending = memoryview(b"\n" + pending)
        try:
            while pending:
                self._wait()
                written = os.write(self.fileno(), pending[: select.PIPE_BUF])
                self._torn = written < len(pending)
                pending = pending[written:]
        except OSError as error:
            self.dropped_count += 1
            self.reason = self.reason or (error.strerror or str(error))
        return length

    def _wait(self) -> None:
        """Wait until the descriptor takes at least PIPE_BUF bytes; regular files always do."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        self._stalled = not poll.poll(0 if self._stalled else _STALLED_S * 1e3)
        if self._stalled:
            raise BlockingIOError(errno.EAGAIN, "its reader takes nothing")


def let_output_fail() -> None:
    """From now on, drop what can't be written to stdout and stderr: a full disk, a closed pipe, a stopped reader.

    For work whose result is on disks and machines, not in its output. At the end of the program stderr says how much of
    stdout was dropped.
    """
    outputs = [_replace(name) for name in ("stdout", "stderr")]
    if outputs[0] is not None:
        atexit.register(_report, outputs[0])


def _report(stdout: _DroppingOutput) -> None:
    if stdout.dropped_count:
        print(f"note: {stdout.dropped_count} writes to stdout were dropped: {stdout.reason}", file=sys.stderr)


def _replace(name: str) -> _DroppingOutput | None:
    """Replace a stream of :mod:`sys`; return None if it has no descriptor, as in tests."""
    stream: TextIO | None = getattr(sys, name)
    if stream is None:
        return None
    try:
        stream.flush()
        output = _DroppingOutput(stream.fileno())
    except (OSError, ValueError):
        return None
    buffered = io.BufferedWriter(output)
    setattr(
        sys,
        name,
        io.TextIOWrapper(buffered, encoding=stream.encoding, errors=stream.errors, line_buffering=True),
    )
    return output
