"""The serial console of a virtual machine: text that a test waits for and types."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Final

from tests.support.network.lab import LabError

_TEXT_BYTES_MAX: Final = 8 << 20
"""Limit of the kept text: a kernel that prints in a loop must not fill the memory of the test."""
_SHOWN_LINES: Final = 40
_ESCAPE: Final = re.compile(r"\x1b(\[[0-9;?=]*[A-Za-z]|[()][A-Z0-9]|[=>78cM])")
HOPELESS: Final = ("Kernel panic", "end trace", "Traceback (most recent call last)")
"""Texts after which nothing that a test awaits will happen."""


class SerialConsole:
    """Text of a machine's serial port, without the terminal's escape sequences.

    Args:
        process: QEMU, with its serial port on standard input and output.
        name: the machine's, for messages.
        log: a file that keeps every byte.
    """

    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self._process = process
        self._name = name
        self._log = log.open("wb")
        self._started_s = time.monotonic()
        self._changed = threading.Condition()
        self._text = ""
        self._raw = b""
        self._arrivals: list[tuple[int, float]] = []
        self._open = True
        self._thread = threading.Thread(target=self._read, name=f"console of {name}", daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """All of the text so far."""
        with self._changed:
            return self._text

    def wait_for(
        self, text: str, timeout_s: float, *, after: int = 0, unless: tuple[str, ...] = HOPELESS
    ) -> int:
        """Wait until ``text`` appears, and return the position behind it, for ``after`` of the next wait.

        Args:
            text: the awaited text.
            timeout_s: limit of the wait.
            after: position from which the text counts.
            unless: texts that end the wait as failed at once.

        Raises:
            LabError: one of ``unless`` appeared, the machine ended, or ``timeout_s`` passed.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                found = self._text.find(text, after)
                if found >= 0:
                    return found + len(text)
                if bad := next((word for word in unless if word in self._text[after:]), None):
                    self._changed.wait(2.0)  # the lines behind it are the explanation
                    raise LabError(f"{self._name}: {bad!r} instead of {text!r}; {self._tail()}")
                if not self._open:
                    raise LabError(f"{self._name} ended without {text!r}; {self._tail()}")
                remaining_s = deadline_s - time.monotonic()
                if remaining_s <= 0:
                    raise LabError(f"{self._name}: no {text!r} within {timeout_s:g} s; {self._tail()}")
                self._changed.wait(remaining_s)

    def type(self, text: str) -> None:
        """Type ``text`` at the console."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def lines_with(self, prefix: str) -> list[str]:
        """Return the lines that contain ``prefix``, each from there on."""
        found = (line.partition(prefix) for line in self.text.splitlines())
        return [prefix + rest.rstrip() for _, hit, rest in found if hit]

    def seconds_to(self, text: str) -> float | None:
        """Return the time from power-on to the first ``text``; None if it hasn't appeared."""
        with self._changed:
            found = self._text.find(text)
            if found < 0:
                return None
            at_s = next((at for end, at in self._arrivals if end >= found + len(text)), time.monotonic())
            return at_s - self._started_s

    def describe(self) -> str:
        """Return the last lines, for a failed test."""
        with self._changed:
            return self._tail()

    def close(self) -> None:
        """Wait for the end of the output; QEMU must have ended."""
        self._thread.join()
        self._log.close()

    def _tail(self) -> str:
        lines = [line for line in self._text.splitlines() if line.strip()]
        return f"the console of {self._name} ({self._log.name}):\n" + "\n".join(lines[-_SHOWN_LINES:])

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        while chunk := stdout.read1(1 << 16):  # type: ignore[attr-defined]
            self._log.write(chunk)
            self._log.flush()
            self._raw = (self._raw + chunk)[-_TEXT_BYTES_MAX:]
            text = _ESCAPE.sub("", self._raw.decode(errors="replace")).replace("\r", "")
            with self._changed:
                self._text = text
                self._arrivals.append((len(text), time.monotonic()))
                self._changed.notify_all()
        with self._changed:
            self._open = False
            self._changed.notify_all()
