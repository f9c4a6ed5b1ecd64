"""The start of udev, which loads the drivers of this machine's devices and creates their nodes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

SETTLE_TIMEOUT_S: Final = 60
"""A disk controller with many disks takes a while; what appears later is found later."""

_DAEMONS: Final = (Path("/lib/systemd/systemd-udevd"), Path("/usr/lib/systemd/systemd-udevd"))


def start_udev() -> None:
    """Start udev, and wait until it has handled every device; errors leave a machine with fewer devices."""
    daemon = next((path for path in _DAEMONS if path.exists()), None)
    if daemon is None:
        return
    for argv in (
        [str(daemon), "--daemon"],
        ["udevadm", "trigger", "--action=add", "--type=subsystems"],
        ["udevadm", "trigger", "--action=add", "--type=devices"],
        ["udevadm", "settle", f"--timeout={SETTLE_TIMEOUT_S}"],
    ):
        try:
            subprocess.run(
                argv,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SETTLE_TIMEOUT_S + 10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
