"""The reporter of the live system: shows steps, errors and the agent's events to the person at the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from receiver.live.messages import CONSOLE_PREFIX
from receiver.service.log import PlainServiceLog, ServiceLog

ACTIVE_CONSOLES: Final = Path("/sys/class/tty/console/active")
DEVICES: Final = Path("/dev")


class BootReporter(ServiceLog, Protocol):
    """A subscriber to the steps of the start, and to the events of the agent after it."""

    def step(self, text: str) -> None:
        """Show a step or a finding."""

    def stopped_by(self, message: str, following: str) -> None:
        """Show the reason for which this machine can't be imaged, and the action that follows."""


class LineReporter(PlainServiceLog):
    """A reporter that writes lines to every console of the kernel, screens and serial lines."""

    def __init__(self, active: Path = ACTIVE_CONSOLES, devices: Path = DEVICES) -> None:
        """Find the consoles.

        Args:
            active: file with the names of the kernel's consoles.
            devices: folder of their devices.
        """
        try:
            names = active.read_text().split()
        except OSError:
            names = []
        self._paths = [devices / name for name in names or ["console"]]

    def step(self, text: str) -> None:
        """Write the line."""
        self._print(text)

    def stopped_by(self, message: str, following: str) -> None:
        """Write two lines."""
        self._print(message)
        self._print(following)

    def _print(self, text: str) -> None:
        lines = "".join(f"{CONSOLE_PREFIX}{line}\n" for line in text.splitlines() if line.strip())
        for path in self._paths:
            try:
                with path.open("a") as console:
                    console.write(lines)
            except OSError:
                continue  # a console without a device behind it
