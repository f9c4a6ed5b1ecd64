"""Edits of an ext2, ext3 or ext4 filesystem in a partition's copy, by debugfs in the sandbox.

debugfs changes the filesystem without its journal and without the kernel. It reports errors of single commands as text
only, so callers look at the result themselves; :func:`check_ext` has e2fsck look at all of it.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Sequence
from typing import Final

from protocol.constants import KIB, MIB
from protocol.errors import ConfigurationError, ImageError, MissingDependencyError
from protocol.program.system_tools import ToolError, find_tool
from sender.imaging.editing.partition_copy import PartitionCopy

TOOLS: Final = ("debugfs", "e2fsck", "dumpe2fs")
_COMMAND_BYTES_MAX: Final = 8000
"""Longest command: debugfs reads lines of 8,191 bytes, and takes the rest for another command."""
_REPORT_BYTES_MAX: Final = 256 * MIB
"""Output of a tool: debugfs repeats its commands, one for each file."""
_WRITE_TIME_OFFSET: Final = KIB + 0x30


def require_ext_tools() -> None:
    """Check that the tools are installed.

    Raises:
        MissingDependencyError: one isn't.
    """
    missing = [tool for tool in TOOLS if find_tool(tool) is None]
    if missing:
        raise MissingDependencyError(f"{' and '.join(missing)} not found: install e2fsprogs")


def quoted(path: bytes) -> bytes:
    """Return a path as an argument of a command of debugfs.

    Raises:
        ConfigurationError: debugfs has no way to name it.
    """
    argument = b'"' + path.replace(b'"', b'""') + b'"'
    if any(byte < 32 or byte == 127 for byte in path) or len(argument) > _COMMAND_BYTES_MAX:
        name = path.decode(errors="replace").encode("unicode_escape").decode()[:200]
        raise ConfigurationError(
            f"the file {name} can't be changed: its name is too long or has control characters"
        )
    return argument


def edit_ext(copy: PartitionCopy, commands: Sequence[bytes]) -> None:
    """Execute commands of debugfs; the time of every change is the filesystem's last write time.

    The same filesystem and commands therefore always give the same bytes.

    Raises:
        ImageError: debugfs failed.
        SandboxUnavailableError: this kernel can't confine it.
    """
    (written_at,) = struct.unpack("<I", copy.read(_WRITE_TIME_OFFSET, 4))
    script = [b"set_current_time @%d" % max(1, written_at), *commands]
    with tempfile.TemporaryFile() as file:
        file.write(b"\n".join(script) + b"\n")
        file.seek(0)
        try:
            copy.writer("debugfs", "-w", "-f", "-", copy.path, stdin_fd=file.fileno()).run(_REPORT_BYTES_MAX)
        except ToolError as error:
            raise ImageError(f"its filesystem can't be edited: {error}") from error


def check_ext(copy: PartitionCopy) -> None:
    """Check the filesystem with e2fsck, without changing it.

    Raises:
        ImageError: it has errors.
        SandboxUnavailableError: this kernel can't confine the tool.
    """
    try:
        copy.reader("e2fsck", "-fn", copy.path).run(_REPORT_BYTES_MAX)
    except ToolError as error:
        raise ImageError(
            f"its filesystem has errors: run `e2fsck -f` on the reference machine, and pack it again ({error})"
        ) from error
