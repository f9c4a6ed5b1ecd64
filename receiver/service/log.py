"""Event log of an agent in service mode: lines for the journal, or JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from protocol.control.check_in import Assignment
from protocol.errors import DiskcastError
from protocol.model.session_records import CastId
from protocol.shared.units import format_bytes
from receiver.reception.reporting.observer import ReceptionObserver
from receiver.reception.reporting.progress import JsonObserver, PlainObserver, emit_line, print_line
from receiver.reception.reporting.status import Reception


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

    def assigned(self, assignment: Assignment) -> None:
        """Note that a cast was assigned to this machine."""

    def moved(self, assignment: Assignment) -> None:
        """Note that another daemon has taken the cast over."""

    def succeeded(self, reception: Reception) -> None:
        """Note that every byte of the image is verified."""

    def failed(self, cast_id: CastId, error: DiskcastError) -> None:
        """Note that the cast failed on this machine."""

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
