"""The sandbox for foreign bytes: tools that parse an image from somewhere else.

A file format that can name other files makes its reader a confused deputy: plain ``qemu-img convert`` copies any file
of its user into the result if the image names it as its backing file. In the sandbox a tool gets descriptors of the
files that the operator named, and nothing else: Landlock denies all others, a filter of system calls denies sockets and
processes, and limits bound processor time, memory and output. All of that works without privilege; a program that runs
as root gives the tool a user without capabilities besides.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Generator, Mapping, Sequence
from typing import Final

from protocol.constants import GIB, TIB
from protocol.errors import SandboxUnavailableError
from protocol.program.confined_exec import landlock_version
from protocol.program.confinement import CONFINED_USER_ID, Confinement
from protocol.program.file_watch import FileWatch, WatchedFile
from protocol.program.system_call_filter import machine_is_supported
from protocol.program.system_tools import ToolError, tool_output

MEMORY_BYTES_MAX: Final = GIB
"""Memory of a tool: qemu-img takes 100 MB, the largest windows of xz -9 and zstd --ultra 65 and 128 MB."""

THREAD_COUNT_MAX: Final = 512
"""Threads of all foreign parsers together, where they have a user of their own: qemu-img takes up to 70."""

STREAM_BYTES_MAX: Final = 64 * TIB
"""Output of a tool on a pipe: the largest disk of an image."""


def sandbox_problem() -> str:
    """Return the reason why this machine can't confine a foreign parser; empty if it can."""
    if not machine_is_supported():
        return "the system calls of this processor architecture are unknown to diskcast"
    if landlock_version() < 1:
        return "this kernel has no Landlock (Linux 5.13 and later, enabled with lsm=landlock,…)"
    return ""


def require_sandbox(*, allow_unsandboxed: bool = False) -> None:
    """Refuse to parse foreign bytes where nothing confines the parser.

    Raises:
        SandboxUnavailableError: there is no sandbox, and the operator didn't consent.
    """
    problem = sandbox_problem()
    if problem and (not allow_unsandboxed or not machine_is_supported()):
        raise SandboxUnavailableError(
            f"a tool that reads a foreign image can't be confined: {problem}. Use a newer kernel; or, for an image "
            "that you trust, --allow-unsandboxed"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ForeignTool:
    """One run of a tool on descriptors of this process; it opens them as ``/proc/self/fd/N``."""

    arguments: Sequence[str]
    """Name of the program, and its arguments."""
    reads: Sequence[int] = ()
    """Files that it opens for reading. Its standard input needs no entry."""
    writes: Sequence[int] = ()
    """Files without a name that it opens for writing; root gives them to the tool's user."""
    fills: Sequence[int] = ()
    """Like :attr:`writes`, and it may truncate them."""
    watched: Sequence[WatchedFile] = ()
    """Those of :attr:`writes` whose content is provided when the tool accesses it."""
    read_paths: Sequence[str] = ()
    """Files and folders of the system, such as an interpreter's modules, that it reads besides."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables beside those that every tool gets."""
    stdin_fd: int | None = None
    written_bytes_max: int = 0
    """Longest file that it may write."""
    time_limit_s: float | None = None
    """See :func:`protocol.program.system_tools.tool_output`."""
    stall_limit_s: float | None = None
    allow_unsandboxed: bool = False

    def output(self) -> Generator[bytes, None, None]:
        """Yield the tool's standard output in pieces; close the generator if it may be left early.

        Raises:
            SandboxUnavailableError: as :func:`require_sandbox`.
            ToolError: the tool is missing, failed, hung or wrote too much.
            DiskcastError: the content of a watched file couldn't be provided.
        """
        require_sandbox(allow_unsandboxed=self.allow_unsandboxed)
        if not self.watched:
            return self._output(None)
        return self._watched_output()

    def _watched_output(self) -> Generator[bytes, None, None]:
        with FileWatch(tuple(self.watched)) as watch:
            try:
                yield from self._output(watch.fd)
            except ToolError:
                watch.raise_error()
                raise
            watch.raise_error()

    def _output(self, watch_fd: int | None) -> Generator[bytes, None, None]:
        inherited = (*self.reads, *self.writes, *self.fills)
        return tool_output(
            self.arguments,
            dataclasses.replace(self.confinement(), watch_fd=watch_fd),
            pass_fds=inherited if watch_fd is None else (*inherited, watch_fd),
            environment=self.environment,
            stdin_fd=self.stdin_fd,
            time_limit_s=self.time_limit_s,
            stall_limit_s=self.stall_limit_s,
            output_bytes_max=STREAM_BYTES_MAX,
        )

    def run(self, output_bytes_max: int) -> bytes:
        """Return the tool's whole output; errors as :meth:`output`."""
        output = bytearray()
        for data in self.output():
            output += data
            if len(output) > output_bytes_max:
                raise ToolError(f"{self.arguments[0]} wrote too much output")
        return bytes(output)

    def confinement(self) -> Confinement:
        """Return the tool's privileges; give the files that it writes to its user."""
        user_id = self._user_id()
        for fd in (*self.writes, *self.fills):
            if os.geteuid() == 0 and user_id is not None:
                os.fchown(fd, user_id, -1)
        return Confinement(
            reads=(*(f"/proc/self/fd/{fd}" for fd in self.reads), *self.read_paths),
            files=tuple(f"/proc/self/fd/{fd}" for fd in self.writes),
            outputs=tuple(f"/proc/self/fd/{fd}" for fd in self.fills),
            user_id=user_id,
            is_required=False,  # Landlock is; namespaces are forbidden in containers
            landlock_is_required=not self.allow_unsandboxed,
            process_count_max=THREAD_COUNT_MAX if user_id == CONFINED_USER_ID else None,
            memory_bytes_max=MEMORY_BYTES_MAX,
            file_bytes_max=self.written_bytes_max,
        )

    def _user_id(self) -> int | None:
        """Return the tool's user: the parsers', or the owner of a file that no other user may open.

        The kernel checks modes again when a tool opens a descriptor.
        """
        if os.geteuid() != 0:
            return None
        statuses = [os.fstat(fd) for fd in self.reads]
        owners = {status.st_uid for status in statuses if not status.st_mode & stat.S_IROTH}
        if not owners:
            return CONFINED_USER_ID
        return owners.pop() if len(owners) == 1 else 0
