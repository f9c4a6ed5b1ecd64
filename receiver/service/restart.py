"""Reboot and power off after a cast: by systemd where it runs, elsewhere by reboot(2).

A live system has no systemd, and nothing to shut down. Both ways are checked when the agent starts: an operator who
isn't there mustn't learn after an hour of casting that the machine can't restart itself.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from protocol.control.boot_parameters import AfterCast
from protocol.errors import ConfigurationError
from receiver.disk.fit.programs import StepError, require_programs, run_program

SYSTEMD_MARK: Final = Path("/run/systemd/system")
"""Exists exactly where systemd is process 1; see sd_booted(3)."""

PROCESS_STATUS: Final = Path("/proc/self/status")

ACTION_TIMEOUT_S: Final = 60.0
"""Time allowed for ``systemctl`` to accept the command."""

_CAP_SYS_BOOT: Final = 22
"""linux/capability.h."""

_HOW: Final = {
    AfterCast.REBOOT: 0x01234567,  # RB_AUTOBOOT of sys/reboot.h
    AfterCast.POWEROFF: 0x4321FEDC,  # RB_POWER_OFF
}

Restart = Callable[[], None]
"""A function that reboots or powers off, or raises :class:`ConfigurationError`."""


def prepare_restart(
    action: AfterCast, *, systemd_mark: Path | None = None, status: Path | None = None
) -> Restart | None:
    """Return the function for ``action``; None if the machine stays on.

    Args:
        action: action after a cast.
        systemd_mark: exists where systemd runs; None for :data:`SYSTEMD_MARK`.
        status: this process's status; None for the one in /proc.

    Raises:
        MissingDependencyError: systemd runs, but systemctl isn't installed.
        ConfigurationError: this process isn't allowed to restart the machine.
    """
    if action not in _HOW:
        return None
    if (systemd_mark or SYSTEMD_MARK).is_dir():
        require_programs(["systemctl"], f"--after-cast {action.value}")
        return lambda: _run_systemctl(action)
    if not _may_restart(status or PROCESS_STATUS):
        raise ConfigurationError(
            f"--after-cast {action.value} needs the capability CAP_SYS_BOOT where systemd doesn't run: run the agent "
            "as root, and a container with --cap-add SYS_BOOT and the host's pid namespace, or choose --after-cast wait"
        )
    return lambda: restart_now(action)


def restart_now(action: AfterCast) -> None:
    """Flush all disks, then reboot or power off without stopping anything.

    In a PID namespace of its own this ends the namespace.

    Raises:
        ConfigurationError: the kernel refuses.
    """
    os.sync()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.reboot(_HOW[action]) != 0:
        raise _failed(action, os.strerror(ctypes.get_errno()))


def _may_restart(status: Path) -> bool:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return False
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_SYS_BOOT & 1)


def _run_systemctl(action: AfterCast) -> None:
    try:
        run_program(["systemctl", action.value], confinement=None, time_limit_s=ACTION_TIMEOUT_S)
    except StepError as error:
        raise _failed(action, str(error)) from error


def _failed(action: AfterCast, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"the image is on the target, but --after-cast {action.value} failed: {reason}; run it by hand"
    )
