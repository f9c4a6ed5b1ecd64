"""What is seen of an agent in service mode: a line for the journal or a JSON line whenever something happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import click

from protocol.control.check_in import Assignment
from protocol.errors import DiskcastError
from protocol.model.session_records import CastId
from protocol.shared.units import format_bytes
from receiver.reception.cast_receiver import Reception
from receiver.reception.reporting.progress import JsonObserver, PlainObserver, ReceptionObserver, emit_line


class ServiceLog(Protocol):
    """Who is told what the service does."""

    def observer(self) -> ReceptionObserver:
        """Who is told how a reception goes."""

    def waiting(self, url: str, machine_id: str, name: str) -> None:
        """A daemon answers, and knows this machine by that id and name."""

    def unanswered(self, reason: str) -> None:
        """No daemon answers any more; told once until one does."""

    def assigned(self, assignment: Assignment) -> None:
        """This machine's cast has come."""

    def moved(self, assignment: Assignment) -> None:
        """Another daemon has taken the cast over."""

    def succeeded(self, target: str, reception: Reception) -> None:
        """Every byte is verified."""

    def failed(self, cast_id: CastId, error: DiskcastError) -> None:
        """It didn't come to that."""

    def unrecorded(self, cast_ids: Sequence[CastId]) -> None:
        """The service ends, and no daemon has taken the results of these casts."""

    def stopped(self) -> None:
        """The service ends."""


class JsonServiceLog:
    """One JSON object a line on stdout."""

    def observer(self) -> ReceptionObserver:
        """JSON lines too; the result of a cast isn't the program's."""
        return JsonObserver(result_event="cast_result")

    def waiting(self, url: str, machine_id: str, name: str) -> None:
        """``waiting``."""
        emit_line("waiting", server=url, machine_id=machine_id, name=name)

    def unanswered(self, reason: str) -> None:
        """``unanswered``."""
        emit_line("unanswered", reason=reason)

    def assigned(self, assignment: Assignment) -> None:
        """``assigned``."""
        emit_line("assigned", **_assignment_fields(assignment))

    def moved(self, assignment: Assignment) -> None:
        """``moved``."""
        emit_line("moved", **_assignment_fields(assignment))

    def succeeded(self, target: str, reception: Reception) -> None:
        """``cast_result``."""
        JsonObserver(result_event="cast_result").finished(target, reception)

    def failed(self, cast_id: CastId, error: DiskcastError) -> None:
        """``cast_result``."""
        emit_line(
            "cast_result",
            ok=False,
            cast_id=f"{cast_id:08x}",
            error=str(error),
            error_class=type(error).__name__,
            exit_code=error.exit_code,
        )

    def unrecorded(self, cast_ids: Sequence[CastId]) -> None:
        """``unrecorded``."""
        emit_line("unrecorded", cast_ids=[f"{cast_id:08x}" for cast_id in cast_ids])

    def stopped(self) -> None:
        """``result``."""
        emit_line("result", ok=True, exit_code=0)


class PlainServiceLog:
    """Lines on stderr."""

    def observer(self) -> ReceptionObserver:
        """Lines too."""
        return PlainObserver()

    def waiting(self, url: str, machine_id: str, name: str) -> None:
        """Who this is to the daemon."""
        self._say(f"checked in with {url} as {name or machine_id} ({machine_id}); waiting for a cast")

    def unanswered(self, reason: str) -> None:
        """That it goes on trying."""
        self._say(f"no daemon answers, trying again until one does: {reason}")

    def assigned(self, assignment: Assignment) -> None:
        """Which cast."""
        self._say(
            f"cast {assignment.cast_id:08x} is for this machine: {assignment.image_name}, "
            f"{format_bytes(assignment.raw_bytes)}, from {assignment.control_url}"
        )

    def moved(self, assignment: Assignment) -> None:
        """Where to."""
        self._say(f"cast {assignment.cast_id:08x} goes on from {assignment.control_url}")

    def succeeded(self, target: str, reception: Reception) -> None:
        """The outcome."""
        PlainObserver().finished(target, reception)

    def failed(self, cast_id: CastId, error: DiskcastError) -> None:
        """The error."""
        self._say(f"cast {cast_id:08x} failed on this machine: {error}")

    def unrecorded(self, cast_ids: Sequence[CastId]) -> None:
        """Of which casts history may lack the result."""
        named = ", ".join(f"{cast_id:08x}" for cast_id in cast_ids)
        self._say(f"no daemon has taken this machine's result of cast {named}: history may lack it")

    def stopped(self) -> None:
        """That it ends."""
        self._say("stopped")

    def _say(self, text: str) -> None:
        click.echo(text, err=True)


def _assignment_fields(assignment: Assignment) -> dict[str, object]:
    return {
        "cast_id": f"{assignment.cast_id:08x}",
        "image_id": assignment.image_id.hex(),
        "image_name": assignment.image_name,
        "control_url": assignment.control_url,
        "group": assignment.group,
        "port": assignment.port,
    }
