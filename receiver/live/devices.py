"""The start of udev, which loads the drivers of this machine's devices and creates their nodes."""

from __future__ import annotations

import shutil
import subprocess
from typing import Final

SETTLE_TIMEOUT_S: Final = 60
"""A disk controller with many disks takes a while; what appears later is found later."""

_STEPS: Final = (
    # udevd is udevadm by another name.
    ("systemd-udevd", "--daemon"),
    ("udevadm", "trigger", "--action=add", "--type=subsystems"),
    ("udevadm", "trigger", "--action=add", "--type=devices"),
    ("udevadm", "settle", f"--timeout={SETTLE_TIMEOUT_S}"),
)


def start_udev() -> str:
    """Start udev, and wait until it has handled every device.

    Returns:
        The reason for which it may have missed devices; empty on success.
    """
    program = shutil.which("udevadm")
    if program is None:
        return "udevadm isn't installed"
    for argv in _STEPS:
        try:
            done = subprocess.run(
                argv,
                executable=program,
                capture_output=True,
                text=True,
                timeout=2 * SETTLE_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{' '.join(argv)}: {error}"
        if done.returncode != 0:
            return f"{' '.join(argv)}: {done.stderr.strip() or f'exit code {done.returncode}'}"
    return ""
