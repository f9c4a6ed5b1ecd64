"""Observers that show a reception: a bar on a terminal, lines in a log, JSON lines for programs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import click

from protocol.model.bottleneck import Cause
from protocol.model.session_records import CastParameters
from protocol.patch.effective_manifest import machine_digest
from protocol.shared.units import format_bytes, format_duration, format_rate
from protocol.trust.image_policy import AcceptedImage
from receiver.reception.reporting.observer import ReceptionObserver
from receiver.reception.reporting.status import BOTTLENECK_TEXTS, Reception, ReceptionState, ReceptionStatus
from receiver.shared.consoles import stderr_is_screen
from receiver.shared.line_pace import LinePace

JSON_INTERVAL_S: Final = 1.0
PLAIN_INTERVAL_S: Final = 1.0
TERMINAL_INTERVAL_S: Final = 0.25


def choose_observer(*, json_lines: bool) -> ReceptionObserver:
    """Return the observer for the ``--json`` option and the kind of stderr."""
    if json_lines:
        return JsonObserver()
    return TerminalObserver() if stderr_is_screen() else PlainObserver()


def print_line(text: str) -> None:
    """Print a line to stderr."""
    click.echo(text, err=True)


class RateMeter:
    """The rate of a rising count between two calls."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._count = 0

    def per_s(self, count: int) -> float:
        """Return the rate since the last call."""
        now = self._clock()
        rate = (count - self._count) / max(now - self._at, 1e-3)
        self._at, self._count = now, count
        return rate


class _LineObserver:
    """Base of the observers that write lines."""

    def __init__(self) -> None:
        self._rate = RateMeter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do nothing: lines need no end."""


class JsonObserver(_LineObserver):
    """An observer that prints JSON lines to stdout."""

    interval_s = JSON_INTERVAL_S

    def __init__(self, result_event: str = "result") -> None:
        """Prepare; ``result_event`` names the outcome's event: ``result`` only if it is the program's last line."""
        super().__init__()
        self._result_event = result_event

    def accepted(self, image: AcceptedImage) -> None:
        """Print ``image_accepted`` with the signer, or with the reason why the image isn't trusted."""
        emit_line("image_accepted", **_accepted_fields(image))

    def joined(self, parameters: CastParameters, *, rejoined: bool) -> None:
        """Print ``joined`` or ``rejoined`` with the cast and its image."""
        emit_line(
            "rejoined" if rejoined else "joined",
            **_cast_fields(parameters),
            incarnation=parameters.incarnation,
        )

    def silent(self, silent_s: float) -> None:
        """Print ``silent``."""
        emit_line("silent", silent_s=round(silent_s, 1))

    def demoted(self, cause: Cause) -> None:
        """Print ``demoted`` with this machine's bottleneck."""
        emit_line("demoted", bottleneck=cause.value)

    def reinstated(self) -> None:
        """Print ``reinstated``."""
        emit_line("reinstated")

    def progress(self, status: ReceptionStatus) -> None:
        """Print ``progress`` with the status and the rate since the last one."""
        rate_bytes_per_s = round(self._rate.per_s(status.bytes_received))
        emit_line("progress", **_status_fields(status), rate_bytes_per_s=rate_bytes_per_s)

    def finished(self, reception: Reception) -> None:
        """Print the result event."""
        emit_line(
            self._result_event,
            ok=True,
            exit_code=0,
            **_cast_fields(reception.parameters),
            **_status_fields(reception.status),
            seconds_receiving=round(reception.report.seconds_receiving, 3),
            seconds_total=round(reception.status.seconds, 3),
            reported=reception.reported,
            fitted=list(reception.fitted),
            machine_digest=_machine_digest(reception),
        )


class PlainObserver(_LineObserver):
    """An observer that prints lines to stderr, for logs."""

    interval_s = PLAIN_INTERVAL_S

    def __init__(self, write_line: Callable[[str], None] = print_line) -> None:
        """Prepare; ``write_line`` writes lines to another place than stderr."""
        super().__init__()
        self._write_line = write_line
        self._pace = LinePace()

    def accepted(self, image: AcceptedImage) -> None:
        """Print the signer; of an unsigned image, print the id, which the operator can compare."""
        if image.verified is None:
            self._print(
                f"allowed without a trusted signature: image id {image.image_id.hex()}; {image.reason}"
            )
            return
        statement, key = image.verified.statement, image.verified.key
        self._print(
            f"{statement.name}, version {statement.version}, signed by {key.name} ({key.key.id_text})"
        )

    def joined(self, parameters: CastParameters, *, rejoined: bool) -> None:
        """Print the cast."""
        self._print(
            f"joined cast {parameters.cast_id:08x}{' again' if rejoined else ''}: {parameters.image_name}, "
            f"{format_bytes(parameters.raw_bytes)}"
        )

    def silent(self, silent_s: float) -> None:
        """Print the silence."""
        self._print(f"nothing heard from the sender for {format_duration(silent_s)}; waiting for it")

    def demoted(self, cause: Cause) -> None:
        """Print the demotion and its cause."""
        self._print(
            f"this machine is much slower than the others because of {BOTTLENECK_TEXTS[cause]}; "
            "the sender will finish it after them"
        )

    def reinstated(self) -> None:
        """Print the end of the demotion."""
        self._print("this machine keeps up with the others again")

    def progress(self, status: ReceptionStatus) -> None:
        """Print one line if it is due."""
        if status.state is not ReceptionState.REPORTING and self._pace.due(verified_share(status)):
            self._print_progress(_progress_text(status, self._rate.per_s(status.bytes_received)))

    def finished(self, reception: Reception) -> None:
        """Print the outcome."""
        status = reception.status
        image = f"{reception.parameters.image_name} ({format_bytes(status.raw_bytes)})"
        if status.patch_id:
            image += " with this machine's patch"
        self._print(
            f"{image} is on {status.target}, every byte read back and verified, after "
            f"{format_duration(status.seconds)}; {format_bytes(status.raw_bytes_kept)} were already there"
        )
        for sentence in reception.fitted:
            self._print(sentence)
        bottlenecks = _bottlenecks_text(status)
        if bottlenecks:
            self._print(f"bottlenecks: {bottlenecks}")
        if not reception.reported:
            self._print("the sender didn't accept this machine's report: it may list the machine as lost")

    def _print(self, text: str) -> None:
        self._write_line(text)

    def _print_progress(self, text: str) -> None:
        self._print(text)


class TerminalObserver(PlainObserver):
    """An observer that shows a bar of the verified bytes, and prints lines above it."""

    interval_s = TERMINAL_INTERVAL_S

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        super().__init__()
        self._bar = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self._task = self._bar.add_task("", total=None, text="looking for a sender")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def progress(self, status: ReceptionStatus) -> None:
        """Update the bar."""
        text = _progress_text(status, self._rate.per_s(status.bytes_received))
        self._bar.update(
            self._task, total=status.raw_bytes_used, completed=status.raw_bytes_verified, text=text
        )
        self._bar.refresh()

    def finished(self, reception: Reception) -> None:
        """Print the outcome below the bar."""
        self._bar.stop()
        super().finished(reception)

    def _print(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)


def _machine_digest(reception: Reception) -> str:
    """Return the digest of the disk's content; that of an image alone is its id."""
    patch_id = reception.report.patch_id
    image_id = reception.parameters.image_id
    return (image_id if patch_id is None else machine_digest(image_id, patch_id)).hex()


def verified_share(status: ReceptionStatus) -> float:
    """Return the share of the image that is verified, 0 to 1."""
    return status.raw_bytes_verified / status.raw_bytes_used if status.raw_bytes_used else 0.0


def _progress_text(status: ReceptionStatus, rate_bytes_per_s: float) -> str:
    if status.state is not ReceptionState.RECEIVING:
        return status.state.value
    verified = f"{format_bytes(status.raw_bytes_verified)} of {format_bytes(status.raw_bytes_used)} verified"
    rate = format_rate(rate_bytes_per_s)
    if status.scanned_share < 1:
        return f"{verified}, {status.scanned_share:.0%} of the target scanned, {rate}"
    lost = status.datagrams_lost / max(1, status.datagrams_expected)
    return f"{verified}, {rate}, {lost:.1%} lost, bottleneck: {status.bottleneck}"


def _bottlenecks_text(status: ReceptionStatus) -> str:
    """Return the share of time of each bottleneck, the largest first: the answer to "why was it slow?"."""
    total_s = sum(status.bottleneck_seconds.values())
    shares = {name: seconds / total_s for name, seconds in status.bottleneck_seconds.items() if seconds}
    return ", ".join(
        f"{name} {shares[name]:.0%}" for name in sorted(shares, key=shares.__getitem__, reverse=True)
    )


def _accepted_fields(image: AcceptedImage) -> dict[str, object]:
    fields: dict[str, object] = {"image_id": image.image_id.hex(), "image_name": image.name}
    if image.verified is None:
        return {**fields, "signed": False, "reason": image.reason}
    statement, key = image.verified.statement, image.verified.key
    return {
        **fields,
        "signed": True,
        "version": statement.version,
        "key_id": key.key.id_text,
        "key_name": key.name,
    }


def _cast_fields(parameters: CastParameters) -> dict[str, object]:
    return {
        "cast_id": f"{parameters.cast_id:08x}",
        "image_id": parameters.image_id.hex(),
        "image_name": parameters.image_name,
    }


def _status_fields(status: ReceptionStatus) -> dict[str, object]:
    fields = dataclasses.asdict(status)
    rounded: dict[str, object] = {
        key: round(value, 6) for key, value in fields.items() if isinstance(value, float)
    }
    bottleneck_seconds = {name: round(seconds, 3) for name, seconds in status.bottleneck_seconds.items()}
    return {**fields, **rounded, "bottleneck_seconds": bottleneck_seconds}


def emit_line(event: str, **fields: object) -> None:
    """Print a JSON line."""
    click.echo(json.dumps({"event": event, **fields}))
