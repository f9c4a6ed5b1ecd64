"""Event log of an agent in service mode: lines for the journal, or JSON lines."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from protocol.control.capture_messages import CaptureAssignment
from protocol.control.check_in import Assignment
from protocol.errors import DiskcastError
from protocol.model.session_records import CastId
from protocol.shared.units import format_bytes, format_duration
from receiver.capture.capture_disk import CapturedImage, CapturePhase, CaptureProgress
from receiver.reception.reporting.observer import ReceptionObserver
from receiver.reception.reporting.progress import JsonObserver, PlainObserver, emit_line, print_line
from receiver.reception.reporting.status import Reception

CAPTURE_PROGRESS_S: Final = 10.0
"""Seconds between two lines about a capture."""


class ServiceLog(Protocol):
    """A subscriber to the events of the service."""

    def observer(self) -> ReceptionObserver:
        """Return an observer for one reception."""

    def enrolled(self, name: str, problem: str) -> None:
        """Note that this machine got its secret; ``problem`` if it couldn't be written to the state directory."""

    def awaiting_approval(self, name: str, code: str) -> None:
        """Show the code by which an operator approves this machine; called once for each code."""

    def waiting(self, url: str, machine_id: str, name: str) -> None:
        """Note that a daemon answers, and knows this machine by that id and name."""

    def unanswered(self, reason: str) -> None:
        """Note that no daemon answers; called once until one does."""

    def nothing_planned(self, idle_s: float) -> None:
        """Note that the service exits, since no cast has been planned for this machine for ``idle_s``."""

    def assigned(self, assignment: Assignment) -> None:
        """Note that a cast was assigned to this machine."""

    def moved(self, assignment: Assignment) -> None:
        """Note that another daemon has taken the cast over."""

    def succeeded(self, reception: Reception) -> None:
        """Note that every byte of the image is verified."""

    def failed(self, cast_id: CastId, error: DiskcastError) -> None:
        """Note that the cast failed on this machine."""

    def capture_assigned(self, assignment: CaptureAssignment) -> None:
        """Note that this machine makes a capture."""

    def capture_progress(self, progress: CaptureProgress) -> None:
        """Note the progress of the capture; called about once a second."""

    def captured(self, assignment: CaptureAssignment, image: CapturedImage) -> None:
        """Note that the image is in the library."""

    def capture_failed(self, assignment: CaptureAssignment, error: DiskcastError) -> None:
        """Note that the capture failed."""

    def unrecorded(self, cast_ids: Sequence[CastId]) -> None:
        """Note that the service exits before a daemon has recorded the results of these casts."""

    def stopped(self) -> None:
        """Note that the service exits."""


class JsonServiceLog:
    """A log that prints JSON lines to stdout."""

    def observer(self) -> ReceptionObserver:
        """Return an observer with JSON lines, in which a cast's result isn't the program's."""
        return JsonObserver(result_event="cast_result")

    def enrolled(self, name: str, problem: str) -> None:
        """Print ``enrolled``."""
        emit_line("enrolled", name=name, problem=problem)

    def awaiting_approval(self, name: str, code: str) -> None:
        """Print ``awaiting_approval``."""
        emit_line("awaiting_approval", name=name, code=code)

    def waiting(self, url: str, machine_id: str, name: str) -> None:
        """Print ``waiting``."""
        emit_line("waiting", server=url, machine_id=machine_id, name=name)

    def unanswered(self, reason: str) -> None:
        """Print ``unanswered``."""
        emit_line("unanswered", reason=reason)

    def nothing_planned(self, idle_s: float) -> None:
        """Print ``nothing_planned``."""
        emit_line("nothing_planned", idle_s=round(idle_s))

    def assigned(self, assignment: Assignment) -> None:
        """Print ``assigned``."""
        emit_line("assigned", **_assignment_fields(assignment))

    def moved(self, assignment: Assignment) -> None:
        """Print ``moved``."""
        emit_line("moved", **_assignment_fields(assignment))

    def succeeded(self, reception: Reception) -> None:
        """Print ``cast_result``."""
        JsonObserver(result_event="cast_result").finished(reception)

    def failed(self, cast_id: CastId, error: DiskcastError) -> None:
        """Print ``cast_result``."""
        emit_line(
            "cast_result",
            ok=False,
            cast_id=f"{cast_id:08x}",
            error=str(error),
            error_class=type(error).__name__,
            exit_code=error.exit_code,
        )

    def capture_assigned(self, assignment: CaptureAssignment) -> None:
        """Print ``capture_assigned``."""
        emit_line("capture_assigned", capture_id=assignment.capture_id, image_name=assignment.name)

    def capture_progress(self, progress: CaptureProgress) -> None:
        """Print ``capture_progress``."""
        emit_line("capture_progress", **dataclasses.asdict(progress))

    def captured(self, assignment: CaptureAssignment, image: CapturedImage) -> None:
        """Print ``capture_result``."""
        fields = dataclasses.asdict(image) | {"image_id": image.image_id.hex()}
        emit_line("capture_result", ok=True, capture_id=assignment.capture_id, **fields)

    def capture_failed(self, assignment: CaptureAssignment, error: DiskcastError) -> None:
        """Print ``capture_result``."""
        emit_line(
            "capture_result",
            ok=False,
            capture_id=assignment.capture_id,
            error=str(error),
            error_class=type(error).__name__,
            exit_code=error.exit_code,
        )

    def unrecorded(self, cast_ids: Sequence[CastId]) -> None:
        """Print ``unrecorded``."""
        emit_line("unrecorded", cast_ids=[f"{cast_id:08x}" for cast_id in cast_ids])

    def stopped(self) -> None:
        """Print ``result``."""
        emit_line("result", ok=True, exit_code=0)


class PlainServiceLog:
    """A log that prints lines to stderr, or writes them to another place."""

    def __init__(self, write_line: Callable[[str], None] = print_line) -> None:
        self._write_line = write_line
        self._capture_phase: CapturePhase | None = None
        self._capture_at = 0.0

    def observer(self) -> ReceptionObserver:
        """Return an observer that prints lines."""
        return PlainObserver(self._print)

    def enrolled(self, name: str, problem: str) -> None:
        """Print the machine."""
        self._print(f"enrolled as {name}" + (f"; {problem}" if problem else ""))

    def awaiting_approval(self, name: str, code: str) -> None:
        """Print the code, set off from other lines, since somebody reads it across a room."""
        self._print(
            f"\n    this machine waits for approval as {name}; its code:   {' '.join(code)}\n"
            "    compare it in the dashboard, or run: diskcast machines approve "
            f"{name} --code {code}\n"
        )

    def waiting(self, url: str, machine_id: str, name: str) -> None:
        """Print the daemon and this machine."""
        self._print(f"checked in with {url} as {name or machine_id} ({machine_id}); waiting for a cast")

    def unanswered(self, reason: str) -> None:
        """Print the reason."""
        self._print(f"no daemon answers, retrying until one does: {reason}")

    def nothing_planned(self, idle_s: float) -> None:
        """Print the reason of the restart."""
        self._print(
            f"nothing is planned for this machine, which has waited for {format_duration(idle_s)}: it restarts, and "
            "the daemon decides again"
        )

    def assigned(self, assignment: Assignment) -> None:
        """Print the cast."""
        self._print(
            f"cast {assignment.cast_id:08x} is for this machine: {assignment.image_name}, "
            f"{format_bytes(assignment.raw_bytes)}, from {assignment.control_url}"
        )

    def moved(self, assignment: Assignment) -> None:
        """Print the new sender's URL."""
        self._print(f"cast {assignment.cast_id:08x} continues from {assignment.control_url}")

    def succeeded(self, reception: Reception) -> None:
        """Print the outcome."""
        PlainObserver(self._print).finished(reception)

    def failed(self, cast_id: CastId, error: DiskcastError) -> None:
        """Print the error."""
        self._print(f"cast {cast_id:08x} failed on this machine: {error}")

    def capture_assigned(self, assignment: CaptureAssignment) -> None:
        """Print the capture."""
        self._capture_at = 0.0
        self._print(
            f"capture {assignment.capture_id}: this machine's disk becomes the image {assignment.name}"
        )

    def capture_progress(self, progress: CaptureProgress) -> None:
        """Print the progress, every ten seconds and at each new phase."""
        now = time.monotonic()
        if progress.phase is self._capture_phase and now - self._capture_at < CAPTURE_PROGRESS_S:
            return
        self._capture_phase, self._capture_at = progress.phase, now
        share = progress.done_bytes / max(1, progress.raw_bytes)
        amount = (
            f"{share:.0%} of {format_bytes(progress.raw_bytes)}, {format_bytes(progress.sent_bytes)} sent"
        )
        if progress.phase is CapturePhase.WAITING:
            self._print(f"capture waits: {progress.reason}")
        else:
            self._print(f"{progress.phase} {amount}")

    def captured(self, assignment: CaptureAssignment, image: CapturedImage) -> None:
        """Print the image."""
        self._print(
            f"captured {assignment.name}, {format_bytes(image.raw_bytes)}, {format_bytes(image.sent_bytes)} sent in "
            f"{format_duration(image.seconds)}; its id: {image.image_id.hex()}"
        )

    def capture_failed(self, assignment: CaptureAssignment, error: DiskcastError) -> None:
        """Print the error."""
        self._print(f"capture {assignment.capture_id} failed: {error}")

    def unrecorded(self, cast_ids: Sequence[CastId]) -> None:
        """Print the casts."""
        named = ", ".join(f"{cast_id:08x}" for cast_id in cast_ids)
        self._print(
            f"no daemon has recorded this machine's result of cast {named}: it may be missing from the history"
        )

    def stopped(self) -> None:
        """Print that the service has stopped."""
        self._print("stopped")

    def _print(self, text: str) -> None:
        self._write_line(text)


def _assignment_fields(assignment: Assignment) -> dict[str, object]:
    return {
        "cast_id": f"{assignment.cast_id:08x}",
        "image_id": assignment.image_id.hex(),
        "image_name": assignment.image_name,
        "control_url": assignment.control_url,
        "group": assignment.group,
        "port": assignment.port,
    }
