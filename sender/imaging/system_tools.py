"""Running the system's own tools on a source: found where they are, bounded in time and output, never left behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Sequence
from typing import Final

from protocol.constants import GIB, MIB

TIME_LIMIT_S: Final = 900.0
"""A tool reads a filesystem's own books, 1 GB of them at most where a disk is large and full: minutes on a slow disk.
Beyond that it hangs."""

OUTPUT_BYTES_MAX: Final = 8 * GIB
"""The books of 10 TB in small files as text; beyond that a tool runs wild. It is read as a stream, never kept."""

_LINE_BYTES_MAX: Final = 16 * MIB
_STDERR_BYTES_KEPT: Final = 4096
_READ_BYTES: Final = MIB
_SILENT_WAIT_S: Final = 10.0
"""What has closed its output has nothing left to do but end."""

_KILLED_WAIT_S: Final = 10.0
"""A process that sleeps in the kernel on a dead disk doesn't even die: then it is left to the kernel."""

_SYSTEM_PATHS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where filesystems' tools are, and what isn't in the search path of a plain user."""


class ToolError(Exception):
    """A tool is missing, failed, hung or ran wild; the message is the reason, for people."""


def find_tool(name: str) -> str | None:
    """The path of the program ``name``; None if it isn't installed."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_PATHS]))


def tool_lines(
    arguments: Sequence[str], *, pass_fds: Sequence[int] = (), time_limit_s: float | None = None
) -> Generator[bytes, None, None]:
    """The lines that a tool writes, without their ends, as they come.

    Close the generator (``contextlib.closing``) if it may be left early: that ends the tool.

    Args:
        arguments: the program's name and its arguments.
        pass_fds: descriptors that it shall have.
        time_limit_s: :data:`TIME_LIMIT_S` by default.

    Raises:
        ToolError: it is missing, failed, hung or ran wild. Lines that came before aren't to be relied on.
    """
    rest = b""
    with contextlib.closing(_output(arguments, pass_fds, time_limit_s)) as output:
        for data in output:
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _LINE_BYTES_MAX:
                raise ToolError(f"{arguments[0]} wrote more than it can have to say")
            yield from lines
    if rest:
        yield rest


def run_tool(
    arguments: Sequence[str], *, pass_fds: Sequence[int] = (), time_limit_s: float | None = None
) -> list[bytes]:
    """All lines of a tool that writes few; arguments and errors as :func:`tool_lines`."""
    return list(tool_lines(arguments, pass_fds=pass_fds, time_limit_s=time_limit_s))


def tool_start(arguments: Sequence[str], length: int, *, pass_fds: Sequence[int] = ()) -> bytes:
    """The first ``length`` bytes that a tool writes, which is ended then; otherwise as :func:`tool_lines`."""
    start = b""
    with contextlib.closing(_output(arguments, pass_fds, None)) as output:
        for data in output:
            start += data
            if len(start) >= length:
                break
    return start[:length]


def _output(
    arguments: Sequence[str], pass_fds: Sequence[int], time_limit_s: float | None
) -> Generator[bytes, None, None]:
    """What a tool writes, in pieces."""
    name = arguments[0]
    program = find_tool(name)
    if program is None:
        raise ToolError(f"{name} isn't installed")
    limit_s = TIME_LIMIT_S if time_limit_s is None else time_limit_s
    try:
        process = subprocess.Popen(
            [program, *arguments[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            env={**os.environ, "LC_ALL": "C", "TERM": "dumb"},
            start_new_session=True,
        )
    except OSError as error:
        raise ToolError(f"{name} can't be started: {error.strerror}") from error
    try:
        said = yield from _stream(process, name, limit_s)
        _check_end(process, name, said)
    finally:
        _end(process)


def _stream(process: subprocess.Popen[bytes], name: str, limit_s: float) -> Generator[bytes, None, bytes]:
    """Yield standard output and return the last of what came on standard error."""
    assert process.stdout is not None
    assert process.stderr is not None
    output_fd, error_fd = process.stdout.fileno(), process.stderr.fileno()
    deadline_s = time.monotonic() + limit_s
    said = b""
    output_bytes = 0
    with selectors.DefaultSelector() as selector:
        for fd in (output_fd, error_fd):
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            left_s = deadline_s - time.monotonic()
            ready = selector.select(left_s) if left_s > 0 else []
            if not ready and time.monotonic() >= deadline_s:
                raise ToolError(f"{name} didn't end within {limit_s:g} s")
            for key, _ in ready:
                data = os.read(key.fd, _READ_BYTES)
                if not data:
                    selector.unregister(key.fd)
                elif key.fd == error_fd:
                    said = (said + data)[-_STDERR_BYTES_KEPT:]
                else:
                    output_bytes += len(data)
                    if output_bytes > OUTPUT_BYTES_MAX:
                        raise ToolError(f"{name} wrote more than it can have to say")
                    yield data
    return said


def _check_end(process: subprocess.Popen[bytes], name: str, said: bytes) -> None:
    try:
        code = process.wait(_SILENT_WAIT_S)
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{name} closed its output but didn't end") from error
    if code == 0:
        return
    # A progress line is one line with many carriage returns; what matters is said last.
    lines = [line.strip() for line in said.decode(errors="replace").replace("\r", "\n").split("\n")]
    words = "; ".join(line for line in lines[-4:] if line and line.isprintable())[-200:]
    how = f"was ended by signal {-code}" if code < 0 else f"failed with code {code}"
    raise ToolError(f"{name} {how}" + (f": {words}" if words else ""))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process and no descriptor behind, whatever state the tool is in."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too; it heads its own group
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILLED_WAIT_S)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
