"""A technician at a machine's console: a pseudo-terminal on which ``diskcast-agent menu`` asks, and a reader of it."""

from __future__ import annotations

import os
import pty
import re
import threading
import tty
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.support.network.lab import LIMIT_S, Program, diskcast_agent, wait_until


class Technician:
    """The menu of one machine, and the person at its console; a context manager that ends both.

    Args:
        options: of the command ``menu``.
        environment: variables added to this process's.
    """

    def __init__(self, *options: object, environment: dict[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        tty.setraw(self._master)
        console = os.ttyname(slave)
        self._slave = slave  # kept open: the console doesn't hang up while nobody uses it
        self._shown = bytearray()
        self._read_bytes = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        argv: Sequence[object] = ("menu", "--console", console, *options)
        self.program = Program(diskcast_agent(*map(str, argv)), environment=environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.program.close()
        os.close(self._slave)
        self._thread.join(LIMIT_S)
        os.close(self._master)

    @property
    def shown(self) -> str:
        """Everything that the console has shown."""
        return self._shown.decode(errors="replace").replace("\r\n", "\n")

    def sees(self, pattern: str, timeout_s: float = LIMIT_S) -> re.Match[str]:
        """Wait until the console shows ``pattern`` after the last match; return the match."""

        def found() -> re.Match[str] | None:
            if self.program.exit_code is not None and not self._match(pattern):
                raise AssertionError(f"the menu has ended without {pattern!r}: {self.describe()}")
            return self._match(pattern)

        match = wait_until(f"the console shows {pattern!r}", found, timeout_s, describe=self.describe)
        assert match is not None
        self._read_bytes += match.end()
        return match

    def types(self, text: str) -> None:
        """Type a line."""
        os.write(self._master, text.encode() + b"\r")

    def chooses(self, pattern: str) -> None:
        """Choose the entry of the next list whose line has ``pattern``."""
        number = self.sees(rf"\n +(\d+)  [^\n]*{pattern}")[1]
        self.sees(r"Number \(1-\d+")
        self.types(number)

    def describe(self) -> str:
        """Return the console and the state of the program, for a failed test."""
        return f"{self.program.describe()}; the console shows:\n{self.shown}"

    def _match(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.shown[self._read_bytes :])

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 4096)
            except OSError:  # the last user of the terminal has closed it
                return
            if not data:
                return
            self._shown += data
