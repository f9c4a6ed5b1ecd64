"""``diskcast captures`` and ``diskcast machines capture``: images made of machines' disks."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import click

from protocol.constants import BLOCK_BYTES_DEFAULT
from protocol.errors import CaptureFailedError
from protocol.program.options import WholeNumber
from protocol.shared.units import parse_size_bytes
from sender.console.options import api_command, list_options

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output
    from sender.store.records.captures import Capture

_POLL_INTERVAL_S: Final = 1.0
_LINE_INTERVAL_S: Final = 10.0
"""Seconds between two lines about the progress, where the output isn't a terminal."""


@click.group()
def captures() -> None:
    """Show and control captures: images made of machines' disks.

    \b
    Examples:
      diskcast captures list
      diskcast captures watch 3c4d5e6f
      diskcast captures cancel 3c4d5e6f
    """  # noqa: D301


@click.command()
@click.argument("machine")
@click.option("--name", metavar="NAME", required=True, help="Name of the image.")
@click.option(
    "--source",
    metavar="PATH",
    default="auto",
    show_default=True,
    help="Disk of the machine, such as /dev/sda.",
)
@click.option("--every-byte", is_flag=True, help="Keep free space too, and record the disk's SHA-256.")
@click.option(
    "--level", metavar="LEVEL", type=WholeNumber(), default=3, show_default=True, help="zstd level, 1 to 22."
)
@click.option(
    "--block-size",
    metavar="SIZE",
    default=f"{BLOCK_BYTES_DEFAULT >> 10}KiB",
    show_default=True,
    help="Block size: a power of two from 64KiB to 4MiB.",
)
@click.option("--base", metavar="IMAGE", help="Image whose blocks aren't uploaded again.")
@click.option("--watch", "watches", is_flag=True, help="Watch the capture until it ends.")
@api_command
def capture(
    client: Client,
    output: Output,
    machine: str,
    *,
    name: str,
    source: str,
    every_byte: bool,
    level: int,
    block_size: str,
    base: str | None,
    watches: bool,
) -> None:
    """Make an image of a machine's disk, over the network.

    The machine's agent makes it in the live system: boot the machine over the network. Only used blocks are packed, and
    only blocks that the base image doesn't have are uploaded; by default that is the newest image of the same name. The
    image enters the library when a second read of the disk has proven it.

    \b
    Examples:
      diskcast machines capture pc01 --name lab-2026-12
      diskcast machines capture pc01 --name lab-2026-12 --source /dev/nvme0n1 --watch
      diskcast machines capture pc01 --name evidence-17 --every-byte --json
    """  # noqa: D301
    from sender.console.lookup import find_image, find_machine, path
    from sender.console.output import print_message
    from sender.store.records.captures import Capture

    found = find_machine(client, machine)
    body = {
        "name": name,
        "source": source,
        "every_byte": every_byte,
        "level": level,
        "block_bytes": parse_size_bytes(block_size),
        "base_image_id": "" if base is None else find_image(client, base).image_id,
    }
    planned = client.create(path("machines", found.machine_id, "capture"), Capture, body)
    text = (
        f"planned capture {planned.capture_id} of {found.name}: boot it over the network, or start its agent with "
        "--allow-capture"
    )
    if not watches:
        output.done(text, planned)
        return
    if not output.json_lines:
        print_message(text)
    _watch(client, output, planned)


@captures.command("list")
@list_options
@api_command
def list_captures(client: Client, output: Output, *, limit: int, everything: bool) -> None:
    """List captures, newest first.

    \b
    Examples:
      diskcast captures list
      diskcast captures list --all --json
    """  # noqa: D301
    from protocol.shared.units import format_bytes
    from sender.console.output import Column, local_time, state_text
    from sender.labels import CAPTURE_STATES
    from sender.store.records.captures import Capture

    columns: list[Column[Capture]] = [
        Column("capture", lambda capture: capture.capture_id),
        Column("machine", lambda capture: capture.machine_name, cut=True),
        Column("image", lambda capture: capture.plan.name, cut=True),
        Column("state", lambda capture: state_text(CAPTURE_STATES[capture.state])),
        Column("done", _share_text, right=True),
        Column(
            "disk", lambda capture: format_bytes(capture.raw_bytes) if capture.raw_bytes else "", right=True
        ),
        Column("created", lambda capture: local_time(capture.created_at)),
        Column("reason", lambda capture: capture.error, cut=True),
    ]
    output.listed(
        "capture",
        client.listed("/captures", Capture, {}),
        columns,
        limit=None if everything else limit,
        nothing="no captures: make one with `diskcast machines capture`",
    )


@captures.command()
@click.argument("capture_id", metavar="CAPTURE")
@api_command
def show(client: Client, output: Output, capture_id: str) -> None:
    """Show a capture: its machine, disk, progress and image.

    \b
    Examples:
      diskcast captures show 3c4d5e6f
      diskcast captures show 3c4d5e6f --json
    """  # noqa: D301
    from protocol.shared.units import format_bytes
    from sender.console.lookup import path
    from sender.console.output import local_time, state_text
    from sender.labels import CAPTURE_STATES
    from sender.store.records.captures import Capture

    found = client.get(path("captures", capture_id), Capture)
    output.record(
        found,
        [
            ("capture", found.capture_id),
            ("machine", found.machine_name),
            ("image", found.plan.name),
            ("state", state_text(CAPTURE_STATES[found.state])),
            ("reason", found.error),
            ("progress", _progress_text(found) if not found.state.ended else ""),
            ("disk", found.disk),
            ("model", found.disk_model),
            ("serial", found.disk_serial),
            ("size", format_bytes(found.raw_bytes) if found.raw_bytes else ""),
            ("uploaded", format_bytes(found.uploaded_bytes) if found.uploaded_bytes else ""),
            ("from base", format_bytes(found.kept_bytes) if found.kept_bytes else ""),
            ("file", found.location),
            ("image id", found.image_id),
            ("created", f"{local_time(found.created_at)} by {found.created_by}"),
            ("started", local_time(found.started_at)),
            ("ended", local_time(found.ended_at)),
        ],
    )


@captures.command()
@click.argument("capture_id", metavar="CAPTURE")
@api_command
def cancel(client: Client, output: Output, capture_id: str) -> None:
    """Cancel a capture, and remove what was uploaded.

    \b
    Examples:
      diskcast captures cancel 3c4d5e6f
      diskcast captures cancel 3c4d5e6f --json
    """  # noqa: D301
    from sender.console.lookup import path
    from sender.store.records.captures import Capture

    cancelled = client.order(path("captures", capture_id, "cancel"), Capture)
    output.done(f"cancelled capture {cancelled.capture_id} of {cancelled.machine_name}", cancelled)


@captures.command()
@click.argument("capture_id", metavar="CAPTURE")
@api_command
def watch(client: Client, output: Output, capture_id: str) -> None:
    """Watch a capture until it ends; the exit code isn't 0 unless the image is in the library.

    \b
    Examples:
      diskcast captures watch 3c4d5e6f
      diskcast captures watch 3c4d5e6f --json
    """  # noqa: D301
    from sender.console.lookup import path
    from sender.store.records.captures import Capture

    _watch(client, output, client.get(path("captures", capture_id), Capture))


def _watch(client: Client, output: Output, capture: Capture) -> None:
    """Show the progress until the end.

    Raises:
        CaptureFailedError: it failed or was cancelled.
    """
    from sender.console.client import to_json as json_of
    from sender.console.lookup import path
    from sender.console.output import emit, print_message
    from sender.store.records.captures import Capture, CaptureState

    shown, shown_at = "", -_LINE_INTERVAL_S
    interval_s = _POLL_INTERVAL_S if sys.stderr.isatty() else _LINE_INTERVAL_S
    while not capture.state.ended:
        now = time.monotonic()
        if capture.state.value != shown or now - shown_at >= interval_s:
            shown, shown_at = capture.state.value, now
            if output.json_lines:
                emit("capture", **json_of(capture))
            else:
                print_message(_progress_text(capture))
        time.sleep(_POLL_INTERVAL_S)
        capture = client.get(path("captures", capture.capture_id), Capture)
    if capture.state is not CaptureState.COMPLETE:
        error = CaptureFailedError(
            f"capture {capture.capture_id} of {capture.machine_name} is {capture.state}"
            + (f": {capture.error}" if capture.error else "")
        )
        error.details = json_of(capture)
        raise error
    name = capture.plan.name
    output.done(f"complete: {name} is in the library; sign it with: diskcast images sign {name}", capture)


def _share_text(capture: Capture) -> str:
    from sender.store.records.captures import CaptureState

    if capture.state not in (CaptureState.UPLOADING, CaptureState.PROVING) or not capture.raw_bytes:
        return ""
    return f"{capture.done_bytes / capture.raw_bytes:.0%}"


def _progress_text(capture: Capture) -> str:
    from protocol.shared.units import format_bytes, format_duration
    from sender.labels import CAPTURE_STATES

    parts = [CAPTURE_STATES[capture.state].text.lower()]
    if capture.raw_bytes:
        share = capture.done_bytes / capture.raw_bytes
        parts.append(f"{share:.0%} of {format_bytes(capture.raw_bytes)}")
        parts.append(f"{format_bytes(capture.uploaded_bytes)} uploaded")
    if capture.rate_bytes_per_s:
        parts.append(f"{format_bytes(capture.rate_bytes_per_s)}/s")
    if capture.eta_s is not None:
        parts.append(f"{format_duration(capture.eta_s)} left")
    return ", ".join(parts)
