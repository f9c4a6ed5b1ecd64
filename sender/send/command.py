"""The command ``diskcast send``: one cast, from the command line to the exit code."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
from pathlib import Path

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
from protocol.program.options import Duration, WholeNumber
from protocol.program.output_streams import let_output_fail
from protocol.shared.units import parse_size_bytes
from sender.cast.cast_settings import CastSettings
from sender.cast.pace_options import Pace, encrypt_option, pace_options

_NEEDED_MODULES = ("asyncio_dgram", "fastapi", "uvicorn")


@click.command()
@click.argument("image", metavar="FILE.dci", type=click.Path(path_type=Path))
@click.option("--interface", metavar="IF", required=True, help="Network interface of the room, such as eth1.")
@click.option(
    "--wait-for",
    metavar="N",
    type=WholeNumber(1, RECEIVER_COUNT_MAX),
    default=1,
    show_default=True,
    help="Start when N receivers have joined; all of them must complete.",
)
@click.option(
    "--max-wait",
    metavar="TIME",
    type=Duration(),
    show_default="no limit",
    help="Start after this time, such as 5m, with the receivers joined so far.",
)
@pace_options
@encrypt_option
@click.option(
    "--group",
    metavar="ADDRESS",
    default=GROUP_IPV4_DEFAULT,
    show_default=True,
    help=f"Multicast group, such as {GROUP_IPV6_DEFAULT} for IPv6.",
)
@click.option(
    "--port",
    metavar="P",
    type=WholeNumber(1, 65535),
    default=DATA_PORT_DEFAULT,
    show_default=True,
    help="UDP port of the group.",
)
@click.option(
    "--control",
    metavar="HOST:PORT",
    default=f":{CONTROL_PORT_DEFAULT}",
    show_default=True,
    help="Address and port of the control API (TCP) and feedback (UDP).",
)
@click.option(
    "--metrics-port",
    metavar="P",
    type=WholeNumber(0, 65535),
    show_default="no metrics",
    help="Serve Prometheus metrics on this TCP port; 0 for any free port.",
)
@click.option(
    "--metrics-address",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address of --metrics-port; 0.0.0.0 for all machines.",
)
@click.option(
    "--ttl",
    metavar="N",
    type=WholeNumber(0, 255),
    default=MULTICAST_TTL_DEFAULT,
    show_default=True,
    help="Time to live: routers that datagrams may pass, plus one.",
)
@click.option(
    "--symbol-size",
    metavar="BYTES",
    show_default="from the MTU, 1440 at 1500",
    help="Payload bytes of a datagram.",
)
@click.option(
    "--receiver-timeout",
    metavar="TIME",
    type=Duration(0.5),
    default=RECEIVER_TIMEOUT_S,
    show_default=True,
    help="Report a receiver as lost after this time of silence.",
)
@click.option(
    "--cast-id",
    metavar="HEX",
    show_default="from image and addresses",
    help="Cast id of eight hexadecimal digits.",
)
@click.option(
    "--patches",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Give every machine its patch of this folder; refuse others.",
)
@click.option(
    "--open",
    "open_to_all",
    is_flag=True,
    help="Admit machines without the join code, on a trusted network.",
)
@click.option(
    "--json", "json_lines", is_flag=True, help="Write JSON lines to stdout; the last one is the result."
)
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
    encrypt: bool,
    patches: Path | None,
    open_to_all: bool,
    json_lines: bool,
    pace: Pace,
) -> int:
    """Cast an image to a room of machines.

    Exits with 0 only if every receiver that joined, and at least --wait-for of them, verified every byte.
    Ctrl-C cancels the cast and notifies the room; a second Ctrl-C exits at once. If the sender was killed, run the same
    command again: the room continues where it was.

    Prints the command to run on each machine, with the join code of this cast: by it the machines recognise this
    sender, and the sender admits them. The code stays the same when the same command runs again.

    \b
    Examples:
      diskcast send lab.dci --interface eth1 --wait-for 30 --max-wait 300
      diskcast send lab.dci --interface eth1 --rate 800M --slow drop
      diskcast send lab.dci --interface eth1 --patches lab-patches/
      diskcast send lab.dci --interface eth1 --encrypt --metrics-port 9100 --json
    """  # noqa: D301  click needs the backspace
    let_output_fail()
    gc.disable()  # everything imported here stays; collections during the imports cost a sixth of the start-up
    policy = CastPolicy(
        wait_for=wait_for,
        max_wait_s=max_wait,
        receiver_timeout_s=receiver_timeout,
        **pace,
    )
    _require_modules()
    settings = CastSettings(
        image=image,
        interface=interface,
        policy=policy,
        group=group,
        port=port,
        control=control,
        ttl=ttl,
        symbol_bytes=None if symbol_size is None else parse_size_bytes(symbol_size),
        cast_id=None if cast_id is None else _parse_cast_id(cast_id),
        encrypt=encrypt,
    )
    return _run(
        settings, metrics_address, metrics_port, patches, open_to_all=open_to_all, json_lines=json_lines
    )


def _run(
    settings: CastSettings,
    metrics_address: str,
    metrics_port: int | None,
    patches: Path | None,
    *,
    open_to_all: bool,
    json_lines: bool,
) -> int:
    from sender.cast.reporting.json_reporter import emit_result
    from sender.cast.reporting.terminal_reporters import choose_reporter
    from sender.send.run import run_cast

    gc.freeze()
    gc.enable()
    reporter = choose_reporter(json_lines=json_lines)
    result = run_cast(
        settings,
        reporter,
        open_to_all=open_to_all,
        metrics_address=metrics_address,
        metrics_port=metrics_port,
        patches=patches,
    )
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
    """Check the sender's own dependencies: an extra, which an agent's machine doesn't need.

    Raises:
        MissingDependencyError: one of them isn't installed.
    """
    missing = [name for name in _NEEDED_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"'diskcast send' needs {', '.join(missing)}, not installed here: pip install 'diskcast[sender]'"
        )
