"""The screen of a virtual machine in VGA text mode, as a person in front of it reads it."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Final

from tests.support.network.lab import LIMIT_S, wait_until

COLUMNS: Final = 80
ROWS: Final = 25
_TEXT_MEMORY: Final = 0xB8000
_TEXT_BYTES: Final = COLUMNS * ROWS * 2
"""A character of code page 437 and its colours in each cell."""
_PROMPT: Final = b"(qemu) "


class VgaScreen:
    """A screen that is read through QEMU's monitor.

    Args:
        folder: for the monitor's socket and copies of the text memory.
    """

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "monitor"
        self._copy = folder / "text-memory"

    @property
    def options(self) -> tuple[str, ...]:
        """Options of QEMU that add the screen."""
        monitor = f"socket,id=monitor,path={self._socket},server=on,wait=off"
        return ("-device", "VGA", "-chardev", monitor, "-mon", "chardev=monitor")

    def rows(self) -> list[str]:
        """Return the text that the screen shows now."""
        self._copy.unlink(missing_ok=True)
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as monitor:
            monitor.settimeout(LIMIT_S)
            monitor.connect(str(self._socket))
            _read_prompt(monitor)
            monitor.sendall(f'pmemsave {_TEXT_MEMORY} {_TEXT_BYTES} "{self._copy}"\n'.encode())
            _read_prompt(monitor)
        cells = self._copy.read_bytes()[::2].decode("cp437")
        return [cells[start : start + COLUMNS].rstrip() for start in range(0, len(cells), COLUMNS)]

    def wait_for(self, text: str, timeout_s: float) -> list[str]:
        """Wait until a row contains ``text``, and return all rows.

        Raises:
            LabError: none did within ``timeout_s``.
        """

        def shown() -> list[str]:
            rows = self.rows()
            return rows if any(text in row for row in rows) else []

        return wait_until(
            f"{text!r} on the screen", shown, timeout_s, describe=lambda: "\n".join(self.rows())
        )


def _read_prompt(monitor: socket.socket) -> None:
    received = b""
    while not received.endswith(_PROMPT):
        part = monitor.recv(4096)
        assert part, "QEMU ended"
        received += part
