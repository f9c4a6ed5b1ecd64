"""Decompression of an image's files by the system's tools, in the sandbox for foreign bytes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Final

from protocol.constants import MIB
from protocol.errors import ForeignImageError, MissingDependencyError, SourceError
from protocol.program.sandbox import ForeignTool
from protocol.program.system_tools import ToolError, find_tool
from sender.imaging.foreign.partclone_reader import ByteStream
from sender.imaging.foreign.split_files import JoinedFiles

_TOOLS: Final = (
    (bytes.fromhex("1f8b08"), ("gzip", "-dc")),
    (bytes.fromhex("28b52ffd"), ("zstd", "-dcq")),
    (bytes.fromhex("fd377a585a00"), ("xz", "-dc")),
    (b"BZh", ("bzip2", "-dc")),
    (bytes.fromhex("04224d18"), ("lz4", "-dc")),
    (b"LZIP", ("lzip", "-dc")),
    (bytes.fromhex("894c5a4f"), ("lzop", "-dc")),
    (bytes.fromhex("5d0000"), ("xz", "--format=lzma", "-dc")),
)
"""Signature of a compressed file, and the program that decompresses it. The file's name doesn't count."""

_MAGIC_BYTES: Final = 6
_FEED_BYTES: Final = MIB
_TIME_LIMIT_S: Final = 24 * 3600.0
"""A disk of terabytes takes hours; the caller's progress shows a tool that hangs."""


@contextlib.contextmanager
def open_stream(fds: Sequence[int], names: Sequence[str], *, allow_unsandboxed: bool) -> Iterator[ByteStream]:
    """Return open files as one stream, decompressed if they are compressed.

    Args:
        fds: the files, which are one stream in this order.
        names: their names for messages.
        allow_unsandboxed: see :class:`sender.imaging.foreign.open_source.ImportLimits`.

    Raises:
        ForeignImageError: the stream is damaged.
        MissingDependencyError: the decompressor isn't installed.
        SandboxUnavailableError: this kernel can't confine it.
        SourceError: a file can't be read.
    """
    try:
        start = os.pread(fds[0], _MAGIC_BYTES, 0)
    except OSError as error:
        raise SourceError(f"{names[0]}: can't read the file: {error.strerror}") from error
    arguments = next((arguments for magic, arguments in _TOOLS if start.startswith(magic)), None)
    if arguments is None:
        yield JoinedFiles(fds, names)
        return
    if find_tool(arguments[0]) is None:
        package = "xz-utils" if arguments[0] == "xz" else arguments[0]
        raise MissingDependencyError(
            f"{names[0]} is compressed by {arguments[0]}, which isn't installed: install the package {package}"
        )
    with _decompressed(fds, names, arguments, allow_unsandboxed=allow_unsandboxed) as stream:
        yield stream


@contextlib.contextmanager
def _decompressed(
    fds: Sequence[int], names: Sequence[str], arguments: Sequence[str], *, allow_unsandboxed: bool
) -> Iterator[ByteStream]:
    with _tool_input(fds, names) as (input_fd, feeder):
        tool = ForeignTool(
            arguments, stdin_fd=input_fd, time_limit_s=_TIME_LIMIT_S, allow_unsandboxed=allow_unsandboxed
        )
        with contextlib.closing(tool.output()) as output:
            if feeder is not None:
                feeder.start()
            yield _ToolStream(output, feeder, names[0])


@contextlib.contextmanager
def _tool_input(fds: Sequence[int], names: Sequence[str]) -> Iterator[tuple[int, _Feeder | None]]:
    """Return a tool's standard input: the file itself, or a pipe and the thread that fills it from several files."""
    if len(fds) == 1:  # without a pipe: an eighth less processor time
        os.lseek(fds[0], 0, os.SEEK_SET)
        yield fds[0], None
        return
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    feeder = _Feeder(fds, names, write_fd)
    try:
        yield read_fd, feeder
    finally:
        os.close(read_fd)  # after the tool has ended: the feeder's next write fails
        if feeder.ident is None:
            os.close(write_fd)
        else:
            feeder.join()


class _Feeder(threading.Thread):
    """Writes the files into the tool's standard input.

    Attributes:
        error: the error that ended it.
    """

    def __init__(self, fds: Sequence[int], names: Sequence[str], write_fd: int) -> None:
        super().__init__(name="feeder", daemon=True)
        self._files = tuple(zip(fds, names, strict=True))
        self._write_fd = write_fd
        self.error: SourceError | None = None

    def run(self) -> None:
        """Copy until the end of the files or of the tool."""
        try:
            with contextlib.suppress(OSError):  # beyond the user's limit for pipes: it stays at 64 KiB
                fcntl.fcntl(self._write_fd, fcntl.F_SETPIPE_SZ, _FEED_BYTES)
            for fd, name in self._files:
                self._feed(fd, name)
        except BrokenPipeError:  # the tool has ended, and its exit status says why
            pass
        except SourceError as error:
            self.error = error
        finally:
            os.close(self._write_fd)

    def _feed(self, fd: int, name: str) -> None:
        offset = 0
        try:
            while count := os.sendfile(self._write_fd, fd, offset, _FEED_BYTES):
                offset += count
        except BrokenPipeError:
            raise
        except OSError as error:
            raise SourceError(f"{name}: can't read the file: {error.strerror}; check the disk") from error


class _ToolStream:
    """The output of a tool as a stream."""

    def __init__(self, output: Generator[bytes, None, None], feeder: _Feeder | None, name: str) -> None:
        self._output = output
        self._feeder = feeder
        self._name = name
        self._pending = memoryview(b"")
        self._offset = 0

    def readinto(self, buffer: memoryview, /) -> int:
        """Read some bytes; 0 once the tool has ended without an error.

        Raises:
            ForeignImageError: the tool found damage.
            SourceError: a file can't be read.
        """
        if not self._pending:
            try:
                self._pending = memoryview(next(self._output, b""))
            except ToolError as error:
                self._check_feeder()
                raise ForeignImageError(
                    f"{self._name}: can't be decompressed beyond offset {self._offset} of its content: {error}; take "
                    "another copy of the file"
                ) from error
            if not self._pending:
                self._check_feeder()
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        self._offset += count
        return count

    def _check_feeder(self) -> None:
        if self._feeder is not None and self._feeder.error is not None:
            raise self._feeder.error
