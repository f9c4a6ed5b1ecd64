"""The range of a disk that a filesystem occupies, as tools can open it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator

from protocol.disk.disk_reads import Read
from sender.imaging.filesystems.system_tools import run_tool, tool_lines


@dataclasses.dataclass(frozen=True, slots=True)
class Area:
    """A range of a disk, and the device or file that tools open to read it."""

    read: Read
    """Reads bytes; offsets count from the area's start."""
    size_bytes: int
    tool_path: str
    """A device or file; the area starts at ``tool_offset_bytes`` in it."""
    tool_offset_bytes: int = 0
    """Not 0 only for filesystems whose tool accepts an offset."""
    tool_fds: tuple[int, ...] = ()
    """Descriptors that ``tool_path`` refers to."""

    def stream_tool(self, *arguments: str) -> contextlib.closing[Generator[bytes, None, None]]:
        """Run a tool and return a context of its lines; leaving the context ends the tool.

        Raises:
            ToolError: as :func:`sender.imaging.filesystems.system_tools.tool_lines`.
        """
        return contextlib.closing(tool_lines(arguments, pass_fds=self.tool_fds))

    def run_tool(self, *arguments: str) -> list[bytes]:
        """Run a tool with little output and return its lines.

        Raises:
            ToolError: as :func:`sender.imaging.filesystems.system_tools.tool_lines`.
        """
        return run_tool(arguments, pass_fds=self.tool_fds)
