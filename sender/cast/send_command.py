"""``diskcast send``: one cast, from the command line to the exit code."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import click

from protocol.constants import (
    CONTROL_PORT_DEFAULT,
    DATA_PORT_DEFAULT,
    GROUP_IPV4_DEFAULT,
    GROUP_IPV6_DEFAULT,
    MULTICAST_TTL_DEFAULT,
    RECEIVER_COUNT_MAX,
    RECEIVER_TIMEOUT_S,
)
from protocol.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    ConfigurationError,
    DiskcastError,
    MissingDependencyError,
)
from protocol.model.cast_policy import CastPolicy
from protocol.model.session_records import CastId
from protocol.shared.units import parse_size_bytes
from sender.cast.options import Pace, pace_options

if TYPE_CHECKING:
    from sender.cast.cast_runner import CastOptions

_NEEDED_MODULES = ("asyncio_dgram", "fastapi", "uvicorn")


@click.command()
@click.argument("image", metavar="FILE.dci", type=click.Path(path_type=Path))
@click.option(
    "--interface", metavar="IF", required=True, help="Network interface of the room, for example eth1."
)
@click.option(
    "--wait-for",
    metavar="N",
    type=click.IntRange(1, RECEIVER_COUNT_MAX),
    default=1,
    show_default=True,
    help="Send image data once N receivers have joined; they must all be complete in the end.",
)
@click.option(
    "--max-wait",
    metavar="S",
    type=click.FloatRange(min=0),
    help="After S seconds start with those that have joined, or give up if none has. Without it: wait for ever.",
)
@pace_options
@click.option(
    "--group",
    metavar="ADDRESS",
    default=GROUP_IPV4_DEFAULT,
    show_default=True,
    help=f"Multicast group, for example {GROUP_IPV6_DEFAULT} for IPv6.",
)
@click.option(
    "--port",
    metavar="P",
    type=click.IntRange(1, 65535),
    default=DATA_PORT_DEFAULT,
    show_default=True,
    help="UDP port of the group.",
)
@click.option(
    "--control",
    metavar="HOST:PORT",
    default=f":{CONTROL_PORT_DEFAULT}",
    show_default=True,
    help="Where the control API listens (TCP) and, on the same port number, feedback (UDP). "
    "Without HOST: the interface's address.",
)
@click.option(
    "--metrics-port",
    metavar="P",
    type=click.IntRange(0, 65535),
    help="Serve Prometheus metrics on this TCP port.",
)
@click.option(
    "--metrics-address",
    metavar="ADDRESS",
    default="0.0.0.0",  # noqa: S104
    show_default=True,
    help="Address for --metrics-port; 127.0.0.1 keeps the metrics on this machine.",
)
@click.option(
    "--ttl",
    metavar="N",
    type=click.IntRange(0, 255),
    default=MULTICAST_TTL_DEFAULT,
    show_default=True,
    help="Routers that datagrams may pass, plus one.",
)
@click.option(
    "--symbol-size",
    metavar="BYTES",
    help="Payload of a datagram; default: what the interface's MTU allows, 1440 at MTU 1500.",
)
@click.option(
    "--receiver-timeout",
    metavar="S",
    type=click.FloatRange(min=0.5),
    default=RECEIVER_TIMEOUT_S,
    show_default=True,
    help="Give up a receiver that was silent for S seconds.",
)
@click.option(
    "--cast-id", metavar="HEX", help="Eight hexadecimal digits; default: follows from image and addresses."
)
@click.option("--json", "json_lines", is_flag=True, help="JSON lines on stdout; the last is the result.")
def send(
    image: Path,
    interface: str,
    wait_for: int,
    max_wait: float | None,
    group: str,
    port: int,
    control: str,
    metrics_port: int | None,
    metrics_address: str,
    ttl: int,
    symbol_size: str | None,
    receiver_timeout: float,
    cast_id: str | None,
    json_lines: bool,
    pace: Pace,
) -> int:
    """Cast an image to a room of machines.

    Exit code 0 only if every receiver that joined, and at least as many as --wait-for asks for, verified every byte.
    Ctrl-C cancels and tells the room; a second one doesn't wait for that. A sender that was killed can be started
    again by the same command: its room goes on where it was.
    """
    gc.disable()  # what is imported here stays: collecting meanwhile costs a sixth of the start-up
    policy = CastPolicy(
        wait_for=wait_for,
        max_wait_s=max_wait,
        receiver_timeout_s=receiver_timeout,
        **pace,
    )
    _require_modules()
    from sender.cast.cast_runner import CastOptions

    options = CastOptions(
        image=image,
        interface=interface,
        policy=policy,
        group=group,
        port=port,
        control=control,
        ttl=ttl,
        symbol_bytes=None if symbol_size is None else parse_size_bytes(symbol_size),
        cast_id=None if cast_id is None else _parse_cast_id(cast_id),
        metrics_address=metrics_address,
        metrics_port=metrics_port,
    )
    return _run(options, json_lines=json_lines)


def _run(options: CastOptions, *, json_lines: bool) -> int:
    from sender.cast.cast_runner import run_cast
    from sender.cast.progress import choose_reporter, emit_result

    gc.freeze()
    gc.enable()
    result = run_cast(options, choose_reporter(json_lines=json_lines))
    if result.cancelled:
        if json_lines:
            emit_result(result.summary, exit_code=EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    try:
        result.summary.require_success()
    except DiskcastError as error:
        error.details = dataclasses.asdict(result.summary)
        raise
    if json_lines:
        emit_result(result.summary, exit_code=EXIT_OK)
    return EXIT_OK


def _parse_cast_id(text: str) -> CastId:
    from protocol.errors import ProtocolError
    from protocol.schema.json_fields import HexInteger

    try:
        return CastId(HexInteger().decode_untrusted("--cast-id", text))
    except ProtocolError as error:
        raise ConfigurationError(str(error)) from error


def _require_modules() -> None:
    """The sender's own dependencies are an extra, which an agent's machine doesn't need.

    Raises:
        MissingDependencyError: one of them isn't installed.
    """
    missing = [name for name in _NEEDED_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"'diskcast send' needs {', '.join(missing)}, not installed here: pip install 'diskcast[sender]'"
        )
