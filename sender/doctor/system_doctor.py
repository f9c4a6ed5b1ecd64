"""Check the system for the daemon: the clock, and the limits on open files and memory."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from protocol.constants import MIB
from protocol.program.findings import Finding, ok, warn
from protocol.shared.units import format_bytes
from sender.http.descriptor_limit import DESCRIPTORS_NEEDED

MEMORY_BYTES_WANTED: Final = 900 * MIB
"""At most 500 MB for the daemon and 400 MB for one cast; a typical cast takes half of that."""
SYSTEMCTL_TIMEOUT_S: Final = 5.0
UNIT: Final = "diskcast.service"

_TIMEX_BYTES: Final = 512
"""More than the kernel's struct timex on any machine."""
_TIME_ERROR: Final = 5
_UNLIMITED: Final = 1 << 62
_CGROUPS: Final = Path("/sys/fs/cgroup")


def clock_is_synchronised() -> bool | None:
    """Return whether the kernel reports a synchronised clock, adjtimex(2); None if it doesn't answer."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state: int = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # modes = 0: read only
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def judge_clock(synchronised: bool | None) -> Finding:
    """Check that the clock is synchronised, for schedules and history."""
    if synchronised is False:
        detail = "not synchronised: schedules and history depend on it"
        return warn("clock", detail, "timedatectl set-ntp true, or install chrony")
    return ok(
        "clock", "synchronised" if synchronised else "unknown: the kernel doesn't report synchronisation"
    )


def judge_limits() -> list[Finding]:
    """Check the limits of the daemon's unit, or those of this process without a unit."""
    unit = unit_limits()
    if unit is not None:
        descriptors, memory_bytes = unit.get("LimitNOFILE", _UNLIMITED), unit.get("MemoryMax", _UNLIMITED)
        where, change = UNIT, f"systemctl edit {UNIT}"
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        descriptors = (
            _UNLIMITED if resource.RLIM_INFINITY in (soft, hard) else hard
        )  # the daemon raises the soft limit
        memory_bytes = cgroup_memory_bytes()
        where, change = "this shell", "raise the limit"
    found = []
    check = "open files"
    if descriptors < DESCRIPTORS_NEEDED:
        detail = f"the limit of {where} is {descriptors}, a large room needs {DESCRIPTORS_NEEDED}"
        found.append(warn(check, detail, f"{change}: LimitNOFILE=65536, or ulimit -Hn 65536"))
    else:
        found.append(ok(check, f"{where}: {'no limit' if descriptors >= _UNLIMITED else descriptors}"))
    check = "memory limit"
    if memory_bytes < MEMORY_BYTES_WANTED:
        detail = f"the limit of {where} is {format_bytes(memory_bytes)}, the daemon and a cast need up to "
        detail += format_bytes(MEMORY_BYTES_WANTED)
        found.append(warn(check, detail, f"{change}: MemoryMax=1G or more"))
    else:
        limit = "no limit" if memory_bytes >= _UNLIMITED else format_bytes(memory_bytes)
        found.append(ok(check, f"{where}: {limit}"))
    return found


def unit_limits() -> dict[str, int] | None:
    """Return the limits of the daemon's unit from systemd; None without systemd or without the unit."""
    if not Path("/run/systemd/system").exists() or (systemctl := shutil.which("systemctl")) is None:
        return None
    names = "LoadState,LimitNOFILE,MemoryMax"
    try:
        shown = subprocess.run(
            [systemctl, "show", UNIT, f"--property={names}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=SYSTEMCTL_TIMEOUT_S,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_unit_limits(shown.splitlines())


def parse_unit_limits(lines: Iterable[str]) -> dict[str, int] | None:
    """Parse the output of ``systemctl show`` into numbers by name; None if the unit isn't installed."""
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    if values.get("LoadState") != "loaded":
        return None
    return {
        name: int(text) if text.isdecimal() else _UNLIMITED
        for name, text in values.items()
        if name != "LoadState"
    }


def cgroup_memory_bytes() -> int:
    """Return the lowest memory limit of the cgroups of this process, such as that of a container."""
    limit = _UNLIMITED
    with contextlib.suppress(OSError):
        line = next(
            line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
        )
        folder = _CGROUPS / line.removeprefix("0::").lstrip("/")
        while True:
            with contextlib.suppress(OSError, ValueError):
                limit = min(limit, int((folder / "memory.max").read_text()))
            if folder == _CGROUPS or _CGROUPS not in folder.parents:
                break
            folder = folder.parent
    return limit
