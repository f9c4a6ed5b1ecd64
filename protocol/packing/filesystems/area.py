"""The range of a disk that a filesystem occupies, as tools can open it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator

from protocol.disk.disk_reads import Read
from protocol.program.confinement import Confinement
from protocol.program.system_tools import run_tool, tool_lines, tool_output_start


@dataclasses.dataclass(frozen=True, slots=True)
class Area:
    """A range of a disk, and the device or file that tools open to read it."""

    read: Read
    """Reads bytes; offsets count from the area's start."""
    size_bytes: int
    tool_path: str
    """A device or file; the area starts at ``tool_offset_bytes`` in it."""
    confinement: Confinement
    """Privileges of the tools."""
    tool_offset_bytes: int = 0
    """Not 0 only for filesystems whose tool accepts an offset."""
    tool_fds: tuple[int, ...] = ()
    """Descriptors that ``tool_path`` refers to."""

    def stream_tool(
        self, *arguments: str, opens_for_writing: bool = False
    ) -> contextlib.closing[Generator[bytes, None, None]]:
        """Run a tool and return a context of its lines; leaving the context ends the tool.

        Args:
            arguments: the program's name and its arguments.
            opens_for_writing: True for a tool that insists on it, although it only reads.

        Raises:
            ToolError: as :func:`protocol.program.system_tools.tool_lines`.
        """
        confinement = self.confinement
        if opens_for_writing and self.tool_fds:
            confinement = dataclasses.replace(confinement, files=(self.tool_path,))
        return contextlib.closing(tool_lines(arguments, confinement, pass_fds=self.tool_fds))

    def tool_output_start(self, *arguments: str, length: int) -> bytes:
        """Return the first ``length`` bytes that a tool writes; errors as :meth:`run_tool`."""
        return tool_output_start(arguments, length, self.confinement, pass_fds=self.tool_fds)

    def run_tool(self, *arguments: str) -> list[bytes]:
        """Run a tool with little output and return its lines.

        Raises:
            ToolError: as :func:`protocol.program.system_tools.tool_lines`.
        """
        return run_tool(arguments, self.confinement, pass_fds=self.tool_fds)
