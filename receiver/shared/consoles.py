"""Terminals by their device: screens, which redraw lines, and serial lines, which only append them."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

_TTY_MAJOR: Final = 4
_VIRTUAL_CONSOLES: Final = range(64)
"""Minor numbers of /dev/tty0 to tty63; ttyS0 is 64 (the kernel's Documentation/admin-guide/devices.txt)."""
_PSEUDO_TERMINAL_MAJORS: Final = range(136, 144)
_ACTIVE_CONSOLES: Final = Path("/sys/class/tty/console/active")


def is_screen(fd: int) -> bool:
    """Return whether ``fd`` is a virtual console or a pseudo-terminal.

    Serial lines and /dev/console aren't: their logs would keep every state of a progress bar, and a slow line would
    hold the program up.
    """
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode):
        return False
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return major in _PSEUDO_TERMINAL_MAJORS or (major == _TTY_MAJOR and minor in _VIRTUAL_CONSOLES)


def stderr_is_screen() -> bool:
    """Return whether progress bars can be shown on stderr."""
    try:
        return is_screen(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or replaced by an object without a descriptor
        return False


def serial_consoles(active: Path = _ACTIVE_CONSOLES) -> tuple[str, ...]:
    """Return the names of the kernel's consoles that are no virtual ones, such as ``ttyS0`` and ``hvc0``."""
    try:
        names = active.read_text().split()
    except OSError:
        return ()
    return tuple(name for name in names if not name.removeprefix("tty").isdecimal())
