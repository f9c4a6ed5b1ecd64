"""Questions and answers on the consoles of a machine: screen and keyboard, serial lines, or both at once.

Plain lines of text, as every serial terminal shows them: no colours, no cursor movement, no keys but letters, digits
and Enter. Every console shows the same; the first answer counts. The kernel's own line discipline edits the lines.
"""

from __future__ import annotations

import contextlib
import os
import select
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError

LINE_BYTES_MAX: Final = 1024
"""Longest answer: a URL. The kernel's limit is 4095."""

_CANCEL: Final = 0x03
"""Ctrl-C ends a line like Enter, and then means "go back": a console that controls no process sends no signal."""

_NEW_LINE: Final = 0x0A

_INPUT_FLAGS, _OUTPUT_FLAGS, _LOCAL_FLAGS, _CONTROL_CHARACTERS = 0, 1, 3, 6
"""Indexes into the list of ``tcgetattr``."""


class GoBackError(Exception):
    """The technician pressed Ctrl-C or Ctrl-D."""


class ConsoleLostError(Exception):
    """No console is left: every terminal has hung up."""


class Console:
    """The consoles. Not thread-safe, except for :meth:`say`; a context manager, which restores the terminals."""

    def __init__(self, terminals: Sequence[int]) -> None:
        """Use open file descriptors of terminals; they stay open.

        Raises:
            ConfigurationError: none of them is a terminal.
        """
        self._usual: dict[int, list[object]] = {}
        for fd in terminals:
            with contextlib.suppress(termios.error):
                self._usual[fd] = termios.tcgetattr(fd)
        self._live = list(self._usual)
        if not self._live:
            raise ConfigurationError(
                "the menu needs a terminal: run it on a console, or name one with --console, such as /dev/ttyS0"
            )
        self._pending = dict.fromkeys(self._live, b"")

    def __enter__(self) -> Console:
        self.take()
        return self

    def __exit__(self, *_error: object) -> None:
        self.give_back()

    def take(self) -> None:
        """Prepare the terminals for questions, and drop what was typed before."""
        for fd in list(self._live):
            self._set(fd, echo=True, flush=termios.TCSAFLUSH)

    def give_back(self) -> None:
        """Restore the terminals: Ctrl-C is a signal again where a shell runs this program."""
        for fd, usual in self._usual.items():
            with contextlib.suppress(termios.error):
                termios.tcsetattr(fd, termios.TCSADRAIN, usual)  # type: ignore[arg-type]

    def say(self, text: str = "") -> None:
        """Show lines on every console. Thread-safe."""
        data = _printable(text).encode(errors="replace") + b"\n"
        for fd in list(self._live):
            with contextlib.suppress(OSError):
                os.write(fd, data)

    def prompt(self, text: str) -> None:
        """Show a question; the answer is typed behind it."""
        data = _printable(text).encode(errors="replace") + b" "
        for fd in list(self._live):
            with contextlib.suppress(OSError):
                os.write(fd, data)

    def line_within(self, timeout_s: float) -> str | None:
        """Return the line that was typed on any console, without blanks around it; None if there is none in time.

        Raises:
            GoBackError: Ctrl-C or Ctrl-D was pressed.
            ConsoleLostError: no console is left.
        """
        return self._read_line(time.monotonic() + timeout_s)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Don't show what is typed in this context."""
        for fd in list(self._live):
            self._set(fd, echo=False, flush=termios.TCSADRAIN)
        try:
            yield
        finally:
            for fd in list(self._live):
                self._set(fd, echo=True, flush=termios.TCSADRAIN)
            self.say()

    def _read_line(self, deadline_s: float) -> str | None:
        while True:
            for fd, data in self._pending.items():
                line, ended, rest = _first_line(data)
                if ended:
                    self._pending[fd] = rest
                    if line.endswith(bytes([_CANCEL])):
                        self.say()
                        raise GoBackError
                    return " ".join(line.decode(errors="replace").split())
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return None
            self._receive(left_s)

    def _receive(self, timeout_s: float) -> None:
        """Wait for input on any console and keep it; drop a console that has hung up."""
        if not self._live:
            raise ConsoleLostError
        poll = select.poll()
        for fd in self._live:
            poll.register(fd, select.POLLIN)
        for fd, events in poll.poll(timeout_s * 1000):
            data = b""
            with contextlib.suppress(OSError):
                data = os.read(fd, LINE_BYTES_MAX) if events & select.POLLIN else b""
            if data:
                self._pending[fd] = (self._pending[fd] + data)[-LINE_BYTES_MAX:]
            elif events & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                self._live.remove(fd)
                self._pending.pop(fd)
            else:  # Ctrl-D at the start of a line
                raise GoBackError

    def _set(self, fd: int, *, echo: bool, flush: int) -> None:
        try:
            attributes = termios.tcgetattr(fd)
            attributes[_INPUT_FLAGS] |= termios.ICRNL
            attributes[_OUTPUT_FLAGS] |= termios.OPOST | termios.ONLCR
            local = attributes[_LOCAL_FLAGS] | termios.ICANON | termios.ECHOE | termios.ECHOK
            local &= ~(termios.ISIG | termios.ECHO)
            attributes[_LOCAL_FLAGS] = local | termios.ECHO if echo else local
            attributes[_CONTROL_CHARACTERS][termios.VEOL] = bytes([_CANCEL])
            termios.tcsetattr(fd, flush, attributes)
        except termios.error:
            return  # it has hung up, as the next read finds


@contextlib.contextmanager
def open_consoles(paths: Sequence[Path]) -> Iterator[Console]:
    """Open the consoles at ``paths``; without any, use the terminal that this program was started on.

    The kernel may have consoles without a device behind them: those are left out.

    Raises:
        ConfigurationError: none of them is a terminal that can be opened.
    """
    with contextlib.ExitStack() as stack:
        fds = [] if paths else [0]
        for path in paths:
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                fds.append(fd)
        yield stack.enter_context(Console(fds))


def _first_line(data: bytes) -> tuple[bytes, bool, bytes]:
    """Return the first line with its cancelling character, whether it has ended, and the rest."""
    for index, byte in enumerate(data):
        if byte == _CANCEL:
            return data[: index + 1], True, data[index + 1 :]
        if byte == _NEW_LINE:
            return data[:index], True, data[index + 1 :]
    return data, False, b""


def _printable(text: str) -> str:
    """Return text without characters that a terminal would obey: names come from images, disks and the network."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
