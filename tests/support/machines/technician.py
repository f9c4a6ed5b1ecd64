"""A technician at the serial console of a machine, who images it by the menu of the live system."""

from __future__ import annotations

import re
from typing import Final

from tests.support.machines.netboot_room import CAST_LIMIT_S
from tests.support.machines.serial_console import SerialConsole

ANSWER_LIMIT_S: Final = 60.0
"""Limit of a step of the menu on a busy machine."""


class SerialTechnician:
    """A person who reads and types; each step continues behind the text of the last one."""

    def __init__(self, console: SerialConsole) -> None:
        self._console = console
        self._seen = 0

    def sees(self, text: str, timeout_s: float = ANSWER_LIMIT_S) -> None:
        """Wait until the console shows ``text`` after the last one."""
        self._seen = self._console.wait_for(text, timeout_s, after=self._seen)

    def types(self, text: str) -> None:
        """Type a line."""
        self._console.type(f"{text}\r")

    def presses(self, key: str) -> None:
        """Press one key."""
        self._console.type(key)

    def chooses(self, entry: str, timeout_s: float = ANSWER_LIMIT_S) -> None:
        """Choose the entry of the next list that contains ``entry``."""
        start = self._seen
        self.sees(entry, timeout_s)
        [*_, number] = re.findall(r"\n +(\d+)  ", self._console.text[start : self._seen])
        self.sees("Number (")
        self.types(number)

    def confirms(self, image: str, serial: str, token: str, *, menu_limit_s: float = ANSWER_LIMIT_S) -> None:
        """Choose an image of the daemon's, and type a serial number for the only disk.

        Args:
            image: name of the image.
            serial: serial number to type.
            token: an operator's token.
            menu_limit_s: limit until the menu is there.
        """
        self.chooses("from the daemon at", menu_limit_s)
        self.chooses("Type an operator's token")
        self.sees("Token:")
        self.types(token)
        self.chooses(f"{image}, ")
        self.sees("Type the serial number of /dev/")
        self.types(serial)

    def sees_success(self, timeout_s: float = CAST_LIMIT_S) -> None:
        """Wait until the image is on the disk and verified."""
        self.sees("every byte read back and verified", timeout_s)
