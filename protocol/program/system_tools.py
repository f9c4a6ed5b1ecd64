"""Run tools of the system, bounded in time and output; none outlives its caller."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from protocol.constants import GIB, MIB
from protocol.program.confinement import ENVIRONMENT, Confinement

TIME_LIMIT_S: Final = 900.0
"""A tool reads a filesystem's metadata, at most 1 GB on a large, full disk: minutes on a slow disk. A tool that takes
longer hangs."""

OUTPUT_BYTES_MAX: Final = 8 * GIB
"""The metadata of 10 TB in small files as text: a tool that writes more is faulty. Output is streamed, not stored."""

_LINE_BYTES_MAX: Final = 16 * MIB
_STDERR_BYTES_KEPT: Final = 4096
_READ_BYTES: Final = MIB
_PIPE_BYTES: Final = MIB
"""Largest buffer for an unprivileged process (pipe-max-size): fewer switches between a decompressor and its reader."""
_EXIT_WAIT_S: Final = 10.0
"""A tool that closed its output only has to exit."""

_KILLED_WAIT_S: Final = 10.0
"""A process that waits in the kernel for a dead disk ignores even SIGKILL: it is left to the kernel."""

_SYSTEM_PATHS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Folders of filesystem tools that aren't in an ordinary user's search path."""


class ToolError(Exception):
    """A tool is missing, failed, hung or wrote too much; the message is the reason, shown to the operator."""


def find_tool(name: str) -> str | None:
    """Return the path of the program ``name``; None if it isn't installed."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_PATHS]))


def tool_lines(
    arguments: Sequence[str],
    confinement: Confinement,
    *,
    pass_fds: Sequence[int] = (),
    time_limit_s: float | None = None,
) -> Generator[bytes, None, None]:
    """Yield the lines that a tool writes, without line ends, as they arrive.

    Close the generator (``contextlib.closing``) if it may be left early: closing kills the tool.

    Args:
        arguments: the program's name and its arguments.
        confinement: privileges of the tool.
        pass_fds: descriptors that the tool inherits.
        time_limit_s: :data:`TIME_LIMIT_S` by default.

    Raises:
        ToolError: the tool is missing, failed, hung or wrote too much. Don't rely on the lines before.
    """
    rest = b""
    with contextlib.closing(
        tool_output(arguments, confinement, pass_fds=pass_fds, time_limit_s=time_limit_s)
    ) as output:
        for data in output:
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _LINE_BYTES_MAX:
                raise ToolError(f"{arguments[0]} wrote too much output")
            yield from lines
    if rest:
        yield rest


def run_tool(
    arguments: Sequence[str],
    confinement: Confinement,
    *,
    pass_fds: Sequence[int] = (),
    time_limit_s: float | None = None,
) -> list[bytes]:
    """Return all lines of a tool with little output; arguments and errors as :func:`tool_lines`."""
    return list(tool_lines(arguments, confinement, pass_fds=pass_fds, time_limit_s=time_limit_s))


def tool_output_start(
    arguments: Sequence[str], length: int, confinement: Confinement, *, pass_fds: Sequence[int] = ()
) -> bytes:
    """Return the first ``length`` bytes that a tool writes, then kill it; otherwise as :func:`tool_lines`."""
    start = b""
    with contextlib.closing(tool_output(arguments, confinement, pass_fds=pass_fds)) as output:
        for data in output:
            start += data
            if len(start) >= length:
                break
    return start[:length]


def tool_output(
    arguments: Sequence[str],
    confinement: Confinement,
    *,
    pass_fds: Sequence[int] = (),
    stdin_fd: int | None = None,
    time_limit_s: float | None = None,
    stall_limit_s: float | None = None,
    output_bytes_max: int | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Generator[bytes, None, None]:
    """Yield the output of a tool in pieces; as :func:`tool_lines`, and besides:

    Args:
        arguments: as there.
        confinement: as there.
        pass_fds: as there.
        stdin_fd: the tool's standard input; empty by default.
        time_limit_s: as there.
        stall_limit_s: longest time without output; by default only ``time_limit_s`` counts.
        output_bytes_max: :data:`OUTPUT_BYTES_MAX` by default.
        environment: variables beside those of every tool.
    """
    name = arguments[0]
    program = find_tool(name)
    if program is None:
        raise ToolError(f"{name} isn't installed")
    limit_s = TIME_LIMIT_S if time_limit_s is None else time_limit_s
    try:
        process = subprocess.Popen(
            confinement.wrap(program, arguments, time_limit_s=limit_s),
            stdin=subprocess.DEVNULL if stdin_fd is None else stdin_fd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            env={**ENVIRONMENT, **environment},
            cwd="/",
            start_new_session=True,
            pipesize=_PIPE_BYTES,
        )
    except OSError as error:
        raise ToolError(f"{name} can't be started: {error.strerror}") from error
    try:
        stderr_tail = yield from _stream(
            process, name, limit_s, stall_limit_s or limit_s, output_bytes_max or OUTPUT_BYTES_MAX
        )
        _check_exit(process, name, stderr_tail)
    finally:
        _stop(process)


def _stream(
    process: subprocess.Popen[bytes], name: str, limit_s: float, stall_limit_s: float, output_bytes_max: int
) -> Generator[bytes, None, bytes]:
    """Yield standard output; return the last bytes of standard error."""
    assert process.stdout is not None
    assert process.stderr is not None
    output_fd, error_fd = process.stdout.fileno(), process.stderr.fileno()
    deadline_s = time.monotonic() + limit_s
    stderr_tail = b""
    output_bytes = 0
    with selectors.DefaultSelector() as selector:
        for fd in (output_fd, error_fd):
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            left_s = min(deadline_s - time.monotonic(), stall_limit_s)
            ready = selector.select(left_s) if left_s > 0 else []
            if not ready and time.monotonic() >= deadline_s:
                raise ToolError(f"{name} didn't exit within {limit_s:g} s")
            if not ready:
                raise ToolError(f"{name} wrote nothing for {stall_limit_s:g} s")
            for key, _ in ready:
                data = os.read(key.fd, _READ_BYTES)
                if not data:
                    selector.unregister(key.fd)
                elif key.fd == error_fd:
                    stderr_tail = (stderr_tail + data)[-_STDERR_BYTES_KEPT:]
                else:
                    output_bytes += len(data)
                    if output_bytes > output_bytes_max:
                        raise ToolError(f"{name} wrote too much output")
                    yield data
    return stderr_tail


def _check_exit(process: subprocess.Popen[bytes], name: str, stderr_tail: bytes) -> None:
    try:
        code = process.wait(_EXIT_WAIT_S)
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{name} closed its output but didn't exit") from error
    if code == 0:
        return
    # A progress bar is one line with many carriage returns; the error message is in the last lines.
    lines = [line.strip() for line in stderr_tail.decode(errors="replace").replace("\r", "\n").split("\n")]
    message = "; ".join(line for line in lines[-4:] if line and line.isprintable())[-200:]
    outcome = f"was killed by signal {-code}" if code < 0 else f"failed with code {code}"
    raise ToolError(f"{name} {outcome}" + (f": {message}" if message else ""))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill the tool if it still runs, and close its descriptors."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too; it heads its own group
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILLED_WAIT_S)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
