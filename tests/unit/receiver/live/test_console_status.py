"""The live system's reporter on real terminals. Lost if these fail: a machine that waits silently, or a stuck cast."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pty
import re
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.control.boot_parameters import AfterCast
from protocol.errors import TargetInUseError
from protocol.model.bottleneck import Cause
from receiver.live.console_status import ConsoleReporter, Consoles, LineConsole, Screen
from receiver.live.messages import CONSOLE_PREFIX, NO_DHCP
from receiver.live.status_model import Explanation, RemainingTime, StatusModel, explain, rough_duration
from receiver.live.status_page import draw_page, row_text
from receiver.reception.reporting.status import ReceptionState
from receiver.shared.consoles import is_screen, serial_consoles
from receiver.shared.line_pace import LINE_INTERVAL_S, LinePace
from tests.support.network.lab import LIMIT_S, wait_until
from tests.unit.protocol.control.test_check_in import ASSIGNMENT
from tests.unit.receiver.reception.reporting.test_progress import PARAMETERS, RECEPTION, STATUS


def screen_text(model: StatusModel) -> str:
    return "\n".join(row_text(row).rstrip() for row in draw_page(model.page()))


@pytest.fixture
def model() -> StatusModel:
    return StatusModel(version="1.0")


def test_the_screen_follows_a_machine_from_its_start_to_the_reboot(model: StatusModel) -> None:
    reporter = ConsoleReporter(model)
    reporter.step("waiting for an address on eth0")
    assert "waiting for an address on eth0" in screen_text(model)
    reporter.prepare("auto", AfterCast.REBOOT)
    reporter.identify("52-54-00-12-34-56", "10.0.0.107")
    reporter.awaiting_approval("pc07", "7KX2QM")
    text = screen_text(model)
    assert "diskcast machines approve pc07 --code 7KX2QM" in text
    assert "██████████" in text
    reporter.enrolled("pc07", "")
    reporter.waiting("https://10.0.0.1:7400", "m-17", "pc07")
    text = screen_text(model)
    assert "Ready: waiting for a cast" in text
    assert "auto" not in text, "the device is named when a cast has chosen it"
    assert re.search(r"diskcast +pc07   10\.0\.0\.107", text)
    reporter.assigned(ASSIGNMENT)
    with reporter.observer() as observer:
        observer.joined(PARAMETERS, rejoined=False)
        observer.progress(STATUS)
        text = screen_text(model)
        for words in (
            "Receiving the image",
            "lab Windows 11, 50.0 GiB",
            "Disk        /dev/sda",
            "50 %",
            "512.0 MiB of 1.0 GiB",
            "when every byte is verified, this machine restarts from its disk",
        ):
            assert words in text
        observer.silent(12.0)
        observer.progress(dataclasses.replace(STATUS, state=ReceptionState.SILENT))
        assert "nothing heard from the sender for 10 s" in screen_text(model)
    reporter.unanswered("https://10.0.0.1:7400: connection refused")
    assert "Receiving the image" in screen_text(model), "a daemon that restarts doesn't concern the cast"
    reporter.succeeded(RECEPTION)
    text = screen_text(model)
    assert "every byte read back and verified" in text
    assert "Next: this machine restarts from its disk." in text


def test_an_error_is_shown_with_cause_and_fix(model: StatusModel) -> None:
    reporter = ConsoleReporter(model)
    reporter.assigned(ASSIGNMENT)
    message = "cannot open /dev/sdb: it is mounted at /home; unmount it first"
    reporter.failed(ASSIGNMENT.cast_id, TargetInUseError(message))
    text = screen_text(model)
    assert re.search(
        r"Error +cannot open /dev/sdb\n +Cause +it is mounted at /home\n +Fix +unmount it first", text
    )
    reporter.stopped_by(NO_DHCP.text(cards="eth0"), "nothing was written; restart in 60 s")
    text = screen_text(model)
    assert re.search(r"Error +no DHCP on eth0\n +Cause +No DHCP server answered", text)
    assert re.search(r"Fix +Enable PortFast", text)
    assert "Nothing was written; restart in 60 s" in text


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ("no link on eth0", Explanation("no link on eth0")),
        ("port 7: it is in use; choose another", Explanation("port 7", "it is in use", "choose another")),
        ("two disks fit: choose one with --target", Explanation("two disks fit", "", "choose one with --target")),
        ("https://10.0.0.1:7400: refused", Explanation("https://10.0.0.1:7400", "refused")),
    ],
)  # fmt: skip
def test_messages_are_split_into_error_cause_and_fix(message: str, parts: Explanation) -> None:
    assert explain(message) == parts


def test_the_remaining_time_follows_the_verified_bytes() -> None:
    remaining = RemainingTime()
    assert remaining.seconds(100) is None
    for second in range(0, 61, 2):
        remaining.note(second * 10, float(second))
    assert remaining.seconds(600) == pytest.approx(60.0)
    for second in range(61, 100):
        remaining.note(600, float(second))
    assert remaining.seconds(600) is None, "nothing moves"


def test_times_are_rough() -> None:
    assert [rough_duration(seconds) for seconds in (3, 47, 240, 7800)] == [
        "10 s",
        "50 s",
        "4 min",
        "2 h 10 min",
    ]


# -- consoles ---------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal of 80x25: the side that shows and the side that programs write to."""
    shown, written = pty.openpty()
    termios.tcsetwinsize(written, (25, 80))
    yield shown, written
    os.close(shown)


class Collector:
    """Everything that a program writes to a terminal, until it closes it."""

    def __init__(self, shown: int) -> None:
        self.received = bytearray()
        self._shown = shown
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other side is closed
            while chunk := os.read(self._shown, 65536):
                self.received.extend(chunk)

    def text(self) -> str:
        self._thread.join(LIMIT_S)
        return self.received.decode()


def test_the_screen_shows_the_latest_page_and_keeps_it(terminal: tuple[int, int], model: StatusModel) -> None:
    shown, written = terminal
    collector = Collector(shown)
    with ConsoleReporter(model, lambda: Consoles((Screen(written),))) as reporter:
        reporter.step("first step")
        wait_until("the first page", lambda: b"first step" in collector.received)
        for index in range(100):
            model.step(f"step {index}")
            reporter.refresh()
        reporter.waiting("https://10.0.0.1:7400", "m-17", "pc07")
    text = collector.text()
    assert text.endswith("\x1b[0m\x1b[?7h\x1b[?25h"), "the cursor comes back, and the page stays"
    assert "Ready: waiting for a cast" in text
    assert len(re.findall("step \\d+", text)) <= 2 * 3, "at most one drawing a second, of a step and its note"


def test_a_console_that_blocks_holds_nothing_up(terminal: tuple[int, int], model: StatusModel) -> None:
    """Somebody pressed Ctrl-S, or a serial cable leads nowhere."""
    _, written = terminal
    serial_shown, serial_written = pty.openpty()
    with ConsoleReporter(
        model, lambda: Consoles((Screen(written),), (LineConsole(serial_written),))
    ) as reporter:
        for index in range(20_000):
            reporter.write_line(f"line {index} of a console that nobody reads")
            reporter.refresh()
    os.close(serial_shown)


def test_serial_consoles_get_whole_lines_and_no_bar(model: StatusModel) -> None:
    shown, written = pty.openpty()
    collector = Collector(shown)
    with ConsoleReporter(model, lambda: Consoles(lines=(LineConsole(written),))) as reporter:
        reporter.awaiting_approval("pc07", "7KX2QM")
        reporter.assigned(ASSIGNMENT)
        with reporter.observer() as observer:
            observer.demoted(Cause.DISK)
            for verified in range(0, 1 << 30, 1 << 22):
                observer.progress(dataclasses.replace(STATUS, raw_bytes_verified=verified))
    lines = collector.text().split("\r\n")
    os.close(shown)
    assert all(line.startswith(CONSOLE_PREFIX) for line in lines if line), lines
    assert any("its code:   7 K X 2 Q M" in line for line in lines)
    assert 15 <= sum("verified" in line for line in lines) <= 20, "one line for each 5 %"


def test_consoles_are_left_to_another_program_and_taken_back(model: StatusModel) -> None:
    """The menu uses them itself; when it fails, the reason must be on them."""
    shown, written = pty.openpty()
    collector = Collector(shown)
    reporter = ConsoleReporter(model, lambda: Consoles(lines=(LineConsole(os.dup(written)),)))
    reporter.step("menu started")
    reporter.close()
    reporter.step("not shown while another program has the consoles")
    reporter.reopen()
    reporter.stopped_by("the menu failed", "restart in 60 s")
    reporter.close()
    os.close(written)
    assert [line for line in collector.text().split("\r\n") if line] == [
        f"{CONSOLE_PREFIX}menu started",
        f"{CONSOLE_PREFIX}the menu failed",
        f"{CONSOLE_PREFIX}restart in 60 s",
    ]
    os.close(shown)


def test_progress_lines_follow_time_or_share() -> None:
    now = 0.0
    pace = LinePace(lambda: now)
    assert pace.due(0.0)
    assert not pace.due(0.04)
    assert pace.due(0.05)
    now = LINE_INTERVAL_S
    assert pace.due(0.06)
    assert not pace.due(0.06)


def test_pseudo_terminals_are_screens_and_files_are_not(terminal: tuple[int, int], tmp_path: Path) -> None:
    assert is_screen(terminal[1])
    with (tmp_path / "log").open("w") as file:
        assert not is_screen(file.fileno())
    with open("/dev/null", "w") as null:  # noqa: PTH123
        assert not is_screen(null.fileno())


def test_serial_consoles_are_those_of_the_kernel(tmp_path: Path) -> None:
    active = tmp_path / "active"
    active.write_text("ttyS0 hvc0 tty0\n")
    assert serial_consoles(active) == ("ttyS0", "hvc0")
    assert serial_consoles(tmp_path / "missing") == ()
