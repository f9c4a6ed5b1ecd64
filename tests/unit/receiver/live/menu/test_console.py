"""Questions on terminals: what is typed arrives once, secrets aren't shown, and Ctrl-C goes back."""

from __future__ import annotations

import os
import pty
import termios
import tty
from collections.abc import Iterator

import pytest

from protocol.errors import ConfigurationError
from receiver.live.menu.console import Console, ConsoleLostError, GoBackError
from tests.support.network.lab import LIMIT_S


class Terminal:
    """A terminal and the person at it."""

    def __init__(self) -> None:
        self.person, self.fd = pty.openpty()
        tty.setraw(self.person)

    def type(self, text: str) -> None:
        os.write(self.person, text.encode())

    def shown(self, until: str) -> str:
        """Return everything shown so far, which includes ``until``."""
        data = b""
        while until.encode() not in data:
            data += os.read(self.person, 4096)
        return data.decode()

    def hang_up(self) -> None:
        os.close(self.person)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    os.close(terminal.fd)


def answer(console: Console) -> str | None:
    return console.line_within(LIMIT_S)


def test_a_line_is_edited_by_the_terminal_and_read_whole(terminal: Terminal) -> None:
    with Console([terminal.fd]) as console:
        console.prompt("Which?")
        assert terminal.shown("Which? ") == "Which? "
        terminal.type("1x\x7f2  3 \r")
        assert answer(console) == "12 3"
        assert "2  3" in terminal.shown("3"), "what is typed is shown"
        assert console.line_within(0.0) is None


def test_a_secret_is_not_shown(terminal: Terminal) -> None:
    """Somebody looks over the technician's shoulder, and serial consoles are recorded."""
    with Console([terminal.fd]) as console:
        with console.hidden():
            console.prompt("Token:")
            terminal.type("dct_operate_secret\r")
            assert answer(console) == "dct_operate_secret"
        console.say("done")
        assert "secret" not in terminal.shown("done")
        terminal.type("seen\r")
        assert answer(console) == "seen"
        assert "seen" in terminal.shown("seen")


@pytest.mark.parametrize("key", ["\x03", "1\x03", "\x04"])
def test_ctrl_c_and_ctrl_d_go_back_without_a_signal(terminal: Terminal, key: str) -> None:
    with Console([terminal.fd]) as console:
        terminal.type(key)
        with pytest.raises(GoBackError):
            answer(console)
        terminal.type("2\r")
        assert answer(console) == "2"


def test_several_consoles_show_the_same_and_the_first_answer_counts(terminal: Terminal) -> None:
    other = Terminal()
    with Console([terminal.fd, other.fd]) as console:
        console.prompt("Number:")
        assert terminal.shown("Number:") == other.shown("Number:")
        other.type("4\r")
        assert answer(console) == "4"
        other.hang_up()
        terminal.type("5\r")
        assert answer(console) == "5"
    os.close(other.fd)


def test_a_menu_without_a_terminal_ends(terminal: Terminal) -> None:
    with Console([terminal.fd]) as console:
        terminal.hang_up()
        with pytest.raises(ConsoleLostError):
            answer(console)


def test_names_from_elsewhere_cannot_control_the_terminal(terminal: Terminal) -> None:
    """An image named with an escape sequence would hide the disk that it overwrites."""
    with Console([terminal.fd]) as console:
        console.say("lab\x1b[2J\x9b")
        assert "lab?[2J?" in terminal.shown("J?")


def test_the_terminal_is_restored(terminal: Terminal) -> None:
    before = termios.tcgetattr(terminal.fd)
    with Console([terminal.fd]):
        assert termios.tcgetattr(terminal.fd) != before
    assert termios.tcgetattr(terminal.fd) == before


def test_a_pipe_is_no_console() -> None:
    read, write = os.pipe()
    with pytest.raises(ConfigurationError, match="needs a terminal"):
        Console([read])
    os.close(read)
    os.close(write)
