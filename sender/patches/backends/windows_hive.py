"""The computer name in a registry hive of Windows, changed by hivexregedit in the sandbox."""

from __future__ import annotations

import os
import re
import struct
import tempfile
from typing import Final

from protocol.constants import KIB, MIB
from protocol.program.sandbox import ForeignTool
from protocol.program.system_tools import ToolError, find_tool

HIVE_BYTES_MAX: Final = 256 * MIB
"""A SYSTEM hive has 10 to 40 MB."""

_HIVEXREGEDIT: Final = "hivexregedit"
_PERL_PATHS: Final = ("/usr/share/perl", "/usr/share/perl5", "/etc/perl")
_TIME_LIMIT_S: Final = 120.0
_HEADER: Final = struct.Struct("<4sII")
_CURRENT: Final = re.compile(rb'"Current"=dword:([0-9a-f]{8})')


def set_computer_name(hive: bytes, name: str) -> bytes:
    """Return a SYSTEM hive with another computer name; equal arguments give equal bytes.

    Raises:
        ValueError: it isn't a hive of Windows, or wasn't written completely.
        ToolError: hivexregedit is missing or failed.
    """
    if len(hive) < 4 * KIB or hive[:4] != b"regf":
        raise ValueError(
            "its SYSTEM hive isn't a registry hive: name the partition of Windows in filesystem.partition"
        )
    _, first, second = _HEADER.unpack_from(hive)
    if first != second:
        raise ValueError(
            "its registry wasn't written completely: shut Windows down with `shutdown /s /t 0` and pack the disk again"
        )
    with tempfile.TemporaryFile(buffering=0) as file, tempfile.TemporaryFile(buffering=0) as changes:
        file.write(hive)
        current = _CURRENT.search(_run(file.fileno(), "--export", r"\Select"))
        if current is None:
            raise ValueError(r"its registry has no Select\Current: it isn't the SYSTEM hive of Windows")
        control_set = rf"\ControlSet{int(current[1], 16):03}"
        changes.write(
            "\n".join(
                (
                    "Windows Registry Editor Version 5.00",
                    "",
                    rf"[{control_set}\Control\ComputerName\ComputerName]",
                    f'"ComputerName"="{name.upper()}"',
                    "",
                    rf"[{control_set}\Services\Tcpip\Parameters]",
                    f'"Hostname"="{name}"',
                    f'"NV Hostname"="{name}"',
                    "",
                )
            ).encode()
        )
        os.fchmod(changes.fileno(), 0o444)  # for the tool's user
        _run(file.fileno(), "--merge", f"/proc/self/fd/{changes.fileno()}", reads=(changes.fileno(),))
        return os.pread(file.fileno(), HIVE_BYTES_MAX, 0)


def _run(hive_fd: int, action: str, argument: str, *, reads: tuple[int, ...] = ()) -> bytes:
    program = find_tool(_HIVEXREGEDIT)
    if program is None:
        raise ToolError(f"{_HIVEXREGEDIT} isn't installed")
    tool = ForeignTool(
        ("perl", program, action, f"/proc/self/fd/{hive_fd}", argument),
        reads=reads,
        fills=(hive_fd,),
        read_paths=(program, *filter(os.path.exists, _PERL_PATHS)),
        written_bytes_max=HIVE_BYTES_MAX,
        time_limit_s=_TIME_LIMIT_S,
    )
    return tool.run(MIB)
