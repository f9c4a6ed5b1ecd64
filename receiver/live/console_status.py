"""The live system's one reporter: a calm screen on the virtual console, plain lines on serial consoles.

::

    boot steps, agent's events ──► ConsoleReporter ─┬─► StatusModel ─► StatusPage ─► Screen (a thread of its own)
                                                 └─► lines ──────────────► LineConsole (one for each serial line)

A console may block its writer for ever (Ctrl-S, a serial line with flow control and nobody behind it), which must never
hold up a cast. Each has a thread, therefore, and loses what it can't show.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self

from protocol.control.boot_parameters import AfterCast
from protocol.control.capture_messages import CaptureAssignment
from protocol.control.check_in import Assignment
from protocol.errors import DiskcastError
from protocol.model.bottleneck import Cause
from protocol.model.session_records import CastId, CastParameters
from protocol.trust.image_policy import AcceptedImage
from receiver.capture.capture_disk import CapturedImage, CaptureProgress
from receiver.live.disk_state import DiskState, note_disk_state
from receiver.live.messages import CONSOLE_PREFIX
from receiver.live.reporter import BootReporter
from receiver.live.status_model import StatusModel
from receiver.live.status_page import (
    CLOSE_SCREEN,
    OPEN_SCREEN,
    PAGE_COLUMNS,
    PAGE_ROWS,
    Row,
    StatusPage,
    console_text,
    draw_page,
    update_bytes,
)
from receiver.reception.reporting.observer import ReceptionObserver
from receiver.reception.reporting.progress import PlainObserver, RateMeter
from receiver.reception.reporting.status import Reception, ReceptionStatus
from receiver.service.log import PlainServiceLog
from receiver.shared.consoles import serial_consoles

SCREEN_DEVICE: Final = "/dev/tty1"
DRAW_INTERVAL_S: Final = 1.0
"""Shortest time between two drawings of the screen."""
HEAL_INTERVAL_S: Final = 10.0
"""Time after which everything is drawn again: the kernel may have written over it."""
LINES_MAX: Final = 200
"""Lines that wait for a slow serial console, at most; then the oldest is lost. 115,200 bit/s carry 100 a second."""
CLOSE_WAIT_S: Final = 2.0
"""Time for the last lines and the last page when the reporter is closed."""


class Screen:
    """A console that shows the latest page, drawn by a thread of its own."""

    def __init__(self, fd: int) -> None:
        """Start the thread.

        Args:
            fd: a virtual console or another terminal, open for writing; the screen closes it.
        """
        self._fd = fd
        self._page = StatusPage()
        self.idle = threading.Event()
        """Set while the latest page is on the console."""
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)
        self._thread.start()

    def show(self, page: StatusPage) -> None:
        """Show ``page`` from now on; never blocks."""
        self._page = page
        self.idle.clear()
        self._changed.set()

    def close(self) -> None:
        """Draw the last page and end, unless the console blocks."""
        self._closing.set()
        self._changed.set()
        self._thread.join(CLOSE_WAIT_S)

    def _run(self) -> None:
        shown: tuple[Row, ...] = ()
        drawn_all_at = 0.0
        with contextlib.suppress(OSError), open(self._fd, "wb", buffering=0) as console:  # noqa: PTH123
            console.write(OPEN_SCREEN)
            while not self._closing.is_set():
                self._changed.wait(HEAL_INTERVAL_S)
                self._changed.clear()
                page = self._page
                drawn = draw_page(page, *_size(self._fd))
                if len(drawn) != len(shown) or time.monotonic() - drawn_all_at >= HEAL_INTERVAL_S:
                    shown, drawn_all_at = (), time.monotonic()
                console.write(update_bytes(drawn, shown))
                shown = drawn
                if page is self._page:
                    self.idle.set()
                self._closing.wait(DRAW_INTERVAL_S)
            console.write(update_bytes(draw_page(self._page, *_size(self._fd)), ()) + CLOSE_SCREEN)


def _size(fd: int) -> tuple[int, int]:
    """Return columns and rows of a terminal; a size of 0 means that nobody set it."""
    with contextlib.suppress(OSError):
        size = os.get_terminal_size(fd)
        if size.columns and size.lines:
            return size.columns, size.lines
    return PAGE_COLUMNS, PAGE_ROWS


class LineConsole:
    """A serial console, to which a thread of its own writes whole lines."""

    def __init__(self, fd: int) -> None:
        """Start the thread.

        Args:
            fd: open for writing; the console closes it.
        """
        self._fd = fd
        self.idle = threading.Event()
        """Set while no line waits."""
        self._lines: deque[str] = deque(maxlen=LINES_MAX)
        self._waiting = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serial console", daemon=True)
        self._thread.start()

    def write_line(self, line: str) -> None:
        """Write a line soon; never blocks."""
        self._lines.append(line)
        self.idle.clear()
        self._waiting.set()

    def close(self) -> None:
        """Write the last lines and end, unless the line blocks."""
        self._closing.set()
        self._waiting.set()
        self._thread.join(CLOSE_WAIT_S)

    def _run(self) -> None:
        with contextlib.suppress(OSError), open(self._fd, "wb") as console:  # noqa: PTH123
            while True:
                self._waiting.wait()
                self._waiting.clear()
                while self._lines:
                    console.write(f"{CONSOLE_PREFIX}{self._lines.popleft()}\n".encode())
                    console.flush()
                self.idle.set()
                if self._closing.is_set() and not self._lines:
                    return


@dataclasses.dataclass(frozen=True, slots=True)
class Consoles:
    """The consoles of a machine.

    Attributes:
        screens: consoles that show pages.
        lines: consoles that get lines.
    """

    screens: tuple[Screen, ...] = ()
    lines: tuple[LineConsole, ...] = ()


class ConsoleReporter(BootReporter):
    """The reporter of the live system; a context manager around its whole run.

    The lines are those of :class:`PlainServiceLog`. Not thread-safe, as any :class:`ServiceLog`.
    """

    def __init__(self, model: StatusModel, open_consoles: Callable[[], Consoles] = Consoles) -> None:
        """Args:
        model: state of the screens.
        open_consoles: returns the consoles, at once and after they were left to another program.
        """
        self.model = model
        self._open_consoles = open_consoles
        self._consoles = open_consoles()
        self._closed = False
        self._plain = PlainServiceLog(self.write_line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Show the last state and leave the consoles to another program."""
        self.refresh()
        for screen in self._consoles.screens:
            screen.close()
        for console in self._consoles.lines:
            console.close()
        self._consoles = Consoles()
        self._closed = True

    def reopen(self) -> None:
        """Take the consoles back."""
        if self._closed:
            self._consoles = self._open_consoles()
            self._closed = False

    def refresh(self) -> None:
        """Show the model's state."""
        page = self.model.page()
        for screen in self._consoles.screens:
            screen.show(page)

    def write_line(self, text: str) -> None:
        """Write text to the serial consoles, and show it among the screen's last messages."""
        self.model.note(text)
        self.write_serial(text)

    def write_serial(self, text: str) -> None:
        """Write text to the serial consoles only."""
        for line in filter(None, map(str.strip, text.splitlines())):
            for console in self._consoles.lines:
                console.write_line(console_text(line))

    # -- the start of the live system ----------------------------------------------------------------------------

    def prepare(self, target: str, after: AfterCast) -> None:
        """Note the target, unless it is a rule that chooses a disk for each cast, and the action after a cast."""
        self.model.target, self.model.after = target if target.startswith("/") else "", after

    def identify(self, name: str, address: str) -> None:
        """Show name and address of this machine on every page."""
        self.model.name, self.model.address = name, address
        self.refresh()

    def step(self, text: str) -> None:
        """Show a step of the start."""
        self.model.step(text)
        self.write_line(text)
        self.refresh()

    def stopped_by(self, message: str, following: str) -> None:
        """Show an error after which this machine can't be imaged.

        Args:
            message: as in ``thing: cause; fix``.
            following: a sentence about what happens next.
        """
        self.model.stopped(message, following)
        self.write_line(message)
        self.write_line(following)
        self.refresh()

    # -- events of the service -----------------------------------------------------------------------------------

    def observer(self) -> ReceptionObserver:
        """Return an observer that shows one reception."""
        return ConsoleObserver(self)

    def enrolled(self, name: str, problem: str) -> None:
        """Show the name."""
        self.model.name = name
        self._plain.enrolled(name, problem)
        self.refresh()

    def awaiting_approval(self, name: str, code: str) -> None:
        """Show the code."""
        self.model.awaiting_approval(name, code)
        self._plain.awaiting_approval(name, code)
        self.refresh()

    def waiting(self, url: str, machine_id: str, name: str) -> None:
        """Show that this machine is ready."""
        self.model.waiting(url, name or machine_id)
        self._plain.waiting(url, machine_id, name)
        self.refresh()

    def unanswered(self, reason: str) -> None:
        """Show the reason."""
        self.model.unanswered(reason)
        self._plain.unanswered(reason)
        self.refresh()

    def nothing_planned(self, idle_s: float) -> None:
        """Show that the machine restarts."""
        self._plain.nothing_planned(idle_s)
        self.refresh()

    def assigned(self, assignment: Assignment) -> None:
        """Show the cast."""
        self.model.assigned(assignment)
        self._plain.assigned(assignment)
        self.refresh()

    def moved(self, assignment: Assignment) -> None:
        """Show the new sender."""
        self._plain.moved(assignment)
        self.refresh()

    def succeeded(self, reception: Reception) -> None:
        """Show the result."""
        note_disk_state(DiskState.COMPLETE)
        self.model.succeeded(reception)
        self._plain.succeeded(reception)
        self.refresh()

    def failed(self, cast_id: CastId, error: DiskcastError) -> None:
        """Show the error."""
        self.model.failed(str(error))
        self._plain.failed(cast_id, error)
        self.refresh()

    def capture_assigned(self, assignment: CaptureAssignment) -> None:
        """Show the capture."""
        self._plain.capture_assigned(assignment)
        self.refresh()

    def capture_progress(self, progress: CaptureProgress) -> None:
        """Show the progress."""
        self._plain.capture_progress(progress)
        self.refresh()

    def captured(self, assignment: CaptureAssignment, image: CapturedImage) -> None:
        """Show the image."""
        self._plain.captured(assignment, image)
        self.refresh()

    def capture_failed(self, assignment: CaptureAssignment, error: DiskcastError) -> None:
        """Show the error."""
        self._plain.capture_failed(assignment, error)
        self.refresh()

    def unrecorded(self, cast_ids: Sequence[CastId]) -> None:
        """Show the casts."""
        self._plain.unrecorded(cast_ids)
        self.refresh()

    def stopped(self) -> None:
        """Show that the agent has stopped, before the machine restarts."""
        self._plain.stopped()
        self.refresh()
        deadline_s = time.monotonic() + CLOSE_WAIT_S
        idle = [screen.idle for screen in self._consoles.screens]
        idle += [console.idle for console in self._consoles.lines]
        for event in idle:
            event.wait(max(0.0, deadline_s - time.monotonic()))


class ConsoleObserver(PlainObserver):
    """An observer that writes the lines of :class:`PlainObserver`, and shows the progress on the screen."""

    def __init__(self, reporter: ConsoleReporter, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(reporter.write_line)
        self._reporter = reporter
        self._clock = clock
        self._screen_rate = RateMeter(clock)

    def accepted(self, image: AcceptedImage) -> None:
        """Show the signer."""
        self._reporter.model.accepted(image)
        super().accepted(image)
        self._reporter.refresh()

    def joined(self, parameters: CastParameters, *, rejoined: bool) -> None:
        """Show the cast; from now on the disk may be written."""
        note_disk_state(DiskState.INCOMPLETE)
        super().joined(parameters, rejoined=rejoined)
        self._reporter.refresh()

    def silent(self, silent_s: float) -> None:
        """Show the silence."""
        self._reporter.model.silent(silent_s)
        super().silent(silent_s)
        self._reporter.refresh()

    def demoted(self, cause: Cause) -> None:
        """Show the demotion."""
        super().demoted(cause)
        self._reporter.refresh()

    def reinstated(self) -> None:
        """Show the end of the demotion."""
        super().reinstated()
        self._reporter.refresh()

    def progress(self, status: ReceptionStatus) -> None:
        """Show the progress."""
        rate_bytes_per_s = self._screen_rate.per_s(status.bytes_received)
        self._reporter.model.progress(status, rate_bytes_per_s, self._clock())
        super().progress(status)
        self._reporter.refresh()

    def _print_progress(self, text: str) -> None:
        self._reporter.write_serial(text)  # the screen has a bar


def open_reporter(version: str) -> ConsoleReporter:
    """Return the reporter for this machine's consoles."""
    return ConsoleReporter(StatusModel(version=version), open_consoles)


def open_consoles() -> Consoles:
    """Open this machine's consoles; one that can't be opened is left out."""
    return Consoles(
        tuple(Screen(fd) for fd in _opened([SCREEN_DEVICE])),
        tuple(LineConsole(fd) for fd in _opened(f"/dev/{name}" for name in serial_consoles())),
    )


def _opened(devices: Iterable[str]) -> list[int]:
    found = []
    for device in devices:
        with contextlib.suppress(OSError):
            found.append(os.open(device, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC))
    return found
