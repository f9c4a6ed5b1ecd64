"""Report a cast as JSON lines on stdout, for scripts."""

from __future__ import annotations

import dataclasses
import json

import click

from protocol.errors import EXIT_OK
from protocol.sending.events import SenderEvent
from sender.cast.reporting.event_text import EVENT_NAMES
from sender.cast.reporting.reporter import JSON_INTERVAL_S, CastIntroduction
from sender.cast.reporting.snapshot import CastSummary, CastView


class JsonReporter:
    """A reporter that writes one JSON object per line to stdout. The command writes the result line."""

    interval_s = JSON_INTERVAL_S

    def started(self, introduction: CastIntroduction) -> None:
        """Write ``cast_started``, with everything that a script needs to start agents."""
        parameters = introduction.parameters
        _emit(
            "cast_started",
            cast_id=f"{parameters.cast_id:08x}",
            incarnation=parameters.incarnation,
            image_name=parameters.image_name,
            image_id=parameters.image_id.hex(),
            raw_bytes=parameters.raw_bytes,
            block_bytes=parameters.block_bytes,
            symbol_bytes=parameters.symbol_bytes,
            interface=introduction.interface,
            group=parameters.group,
            port=parameters.port,
            sender_address=parameters.sender_address,
            control_url=parameters.control_url,
            wait_for=introduction.wait_for,
            send_mode=introduction.send_mode,
            metrics_port=introduction.metrics_port,
            pin=introduction.pin,
            join_code=introduction.join_code,
            receive_command=introduction.receive_command,
        )

    def happened(self, event: SenderEvent, receiver: str | None) -> None:
        """Write the event under its name, with its fields."""
        fields = {key: value for key, value in dataclasses.asdict(event).items() if key != "receiver_id"}
        if receiver is not None:
            fields = {"receiver": receiver, **fields}
        _emit(EVENT_NAMES[type(event)], **fields)

    def note(self, text: str) -> None:
        """Write a ``note``."""
        _emit("note", text=text)

    def progress(self, view: CastView) -> None:
        """Write ``progress``, with everything in the live table."""
        _emit("progress", **dataclasses.asdict(view))

    def finished(self, summary: CastSummary) -> None:
        """Write nothing: the result line follows."""

    def close(self) -> None:
        """Do nothing: there is no terminal to release."""


def emit_result(summary: CastSummary, *, exit_code: int) -> None:
    """Write the result line of a successful or cancelled cast; the program's error handler writes that of a failure."""
    cancelled: dict[str, object] = {}
    if exit_code != EXIT_OK:
        cancelled = {"error": summary.reason, "error_class": "KeyboardInterrupt"}
    _emit("result", ok=exit_code == EXIT_OK, exit_code=exit_code, **cancelled, **dataclasses.asdict(summary))


def _emit(event: str, **fields: object) -> None:
    click.echo(json.dumps({"event": event, **fields}))
