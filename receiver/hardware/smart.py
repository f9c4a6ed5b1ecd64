"""Health of a disk by SMART, read by ``smartctl`` in confinement and within a time limit.

smartctl sends commands to a disk that may be dying, and prints what its firmware answers. The tool sees that one disk
only, and its output is untrusted.
"""

from __future__ import annotations

import contextlib
from typing import Final

from protocol.constants import KIB
from protocol.control.control_messages import parse_json_untrusted
from protocol.errors import ProtocolError
from protocol.model.hardware import DiskHealth, SmartVerdict
from protocol.program.confinement import Capability, Confinement, ToolDevice
from protocol.program.system_tools import ToolError, find_tool, tool_output

TIME_LIMIT_S: Final = 20.0
"""A disk answers within a second, and a sleeping one isn't woken. The kernel retries a command to a faulty disk after
30 s: that disk is in no condition to be asked."""

OUTPUT_BYTES_MAX: Final = 256 * KIB
"""The attributes of a disk take 20 KiB."""

_REALLOCATED: Final = 5
"""Number of the ATA attribute "reallocated sectors count"."""
_COUNT_MAX: Final = (1 << 48) - 1
"""Largest raw value of an ATA attribute."""


def read_health(path: str, device_number: int) -> DiskHealth | None:
    """Return the health of the disk at ``path``; None if it can't be read.

    Blocks for up to :data:`TIME_LIMIT_S`, and a little longer for a process that the kernel doesn't let die.
    """
    if find_tool("smartctl") is None:
        return None
    confinement = Confinement(
        devices=(ToolDevice(path, device_number),),
        user_id=None,
        capabilities=(Capability.SYS_ADMIN, Capability.SYS_RAWIO),
        is_required=False,
    )
    # A disk that sleeps stays asleep. The exit code has a bit for each bad sign: the output counts.
    arguments = ("smartctl", "--json=c", "--health", "--attributes", "--nocheck=standby", path)
    output = bytearray()
    with (
        contextlib.suppress(ToolError),
        contextlib.closing(
            tool_output(arguments, confinement, time_limit_s=TIME_LIMIT_S, output_bytes_max=OUTPUT_BYTES_MAX)
        ) as pieces,
    ):
        for piece in pieces:
            output += piece
    try:
        return parse_health_untrusted(bytes(output))
    except ProtocolError:
        return None


def parse_health_untrusted(output: bytes) -> DiskHealth:
    """Return the health in the JSON of ``smartctl --json --health --attributes``.

    Raises:
        ProtocolError: it isn't the JSON of smartctl.
    """
    document = parse_json_untrusted(output)
    if not isinstance(document, dict) or "smartctl" not in document:
        raise ProtocolError("the output isn't that of smartctl")
    passed = _member(document, "smart_status", "passed")
    verdict = SmartVerdict.UNKNOWN
    if isinstance(passed, bool):
        verdict = SmartVerdict.PASSED if passed else SmartVerdict.FAILING
    used = _count(_member(document, "nvme_smart_health_information_log", "percentage_used"))
    used = _count(_member(document, "endurance_used", "current_percent")) if used is None else used
    reallocated = _count(document.get("scsi_grown_defect_list"))
    table = _member(document, "ata_smart_attributes", "table")
    for row in table if isinstance(table, list) else ():
        if isinstance(row, dict) and row.get("id") == _REALLOCATED:
            reallocated = _count(_member(row, "raw", "value"))
    return DiskHealth(verdict, None if used is None else min(used, 255), reallocated)


def _member(document: dict[str, object], name: str, member: str) -> object:
    value = document.get(name)
    return value.get(member) if isinstance(value, dict) else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _COUNT_MAX else None
