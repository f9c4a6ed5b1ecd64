"""The command ``diskcast-agent receive``. Modules that do the work are imported when it runs."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
from typing import TYPE_CHECKING

import click

from protocol.constants import DISCOVERY_TIMEOUT_S, GROUP_IPV4_DEFAULT, SENDER_TIMEOUT_S
from protocol.errors import ConfigurationError
from protocol.program.options import GROUP_OPTION, JSON_OPTION, PORT_OPTION, Duration
from protocol.program.output_streams import let_output_fail
from receiver.reception.access_options import sender_access_options
from receiver.reception.machine_options import MachineOptions, machine_options
from receiver.shared.signal_scope import run_until_signal
from receiver.target.options import TargetOptions, target_options
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.options import trust_options

if TYPE_CHECKING:
    from receiver.reception.network.sender_access import SenderAccess
    from receiver.reception.options import ReceiveRequest
    from receiver.reception.reporting.observer import ReceptionObserver
    from receiver.reception.reporting.status import Reception
    from receiver.target.dry_run import DryRun


class _CastIdText(click.ParamType[int]):
    """A cast id: eight hexadecimal digits."""

    name = "cast"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the id."""
        if isinstance(value, int):
            return value
        text = str(value)
        if len(text) != 8 or not all(digit in "0123456789abcdefABCDEF" for digit in text):
            self.fail(f"{text!r} isn't a cast id: it has eight hexadecimal digits", param, ctx)
        return int(text, 16)


@click.command()
@target_options
@machine_options
@trust_options
@sender_access_options
@click.option(
    "--sender", "sender_url", metavar="URL", help="Control URL of the sender, instead of discovery."
)
@GROUP_OPTION
@PORT_OPTION
@click.option("--cast", "cast_id", type=_CastIdText(), metavar="ID", help="Join only the cast with this id.")
@click.option("--image-name", metavar="NAME", help="Join only a cast of the image with this name.")
@click.option(
    "--wait",
    "wait_s",
    default=DISCOVERY_TIMEOUT_S,
    show_default=True,
    type=Duration(0.1),
    metavar="TIME",
    help="Time to look for a sender.",
)
@click.option(
    "--sender-timeout",
    "sender_timeout_s",
    default=SENDER_TIMEOUT_S,
    show_default=True,
    type=Duration(1),
    metavar="TIME",
    help="Time to wait for a silent sender to come back.",
)
@JSON_OPTION
def receive(
    target: str,
    target_options: TargetOptions,
    machine: MachineOptions,
    trust: TrustOptions,
    access: SenderAccess,
    sender_url: str | None,
    group: str,
    port: int,
    cast_id: int | None,
    image_name: str | None,
    wait_s: float,
    sender_timeout_s: float,
    as_json: bool,
) -> None:
    """Receive one cast, write its image to a disk or file, and verify it by reading it back.

    The image must be signed by a trusted key, or the target isn't opened. Everything on the target that differs from
    the image is overwritten. A target that is in use or too small is
    refused. After an interruption or a power cut, run the same command again: it resumes. The exit code is 0 only if
    every byte of the image was verified on the target.

    The join code, printed by diskcast send, says which sender to trust: a program that announces the same cast without
    that sender's certificate gets nothing from this machine.

    \b
    Examples:
      diskcast-agent receive --target /dev/sda --interface eth0 --join CODE
      diskcast-agent receive --target auto --interface eth0 --join CODE --sender https://192.0.2.1:7411
      diskcast-agent receive --target /dev/sda --interface eth0 --join CODE --trust-key lab.pub --dry-run
    """  # noqa: D301 - \b is click's mark
    import trio

    from protocol.model.session_records import CastId
    from receiver.reception.network.discovery import CastChoice
    from receiver.reception.options import ReceiveRequest
    from receiver.reception.receive import try_receive
    from receiver.reception.reporting.progress import choose_observer

    request = ReceiveRequest(
        options=machine.receive_options(
            target,
            target_options,
            dataclasses.replace(trust, signer=access.signer),
            join_timeout_s=wait_s,
            sender_timeout_s=sender_timeout_s,
            identity=machine.identity(),
        ),
        access=access,
        sender_url=sender_url,
        group=_multicast_group(group),
        port=port,
        choice=CastChoice(None if cast_id is None else CastId(cast_id), image_name),
        wait_s=wait_s,
    )
    if target_options.dry_run:
        _print_dry_run(trio.run(try_receive, request), as_json=as_json)
        return
    let_output_fail()
    gc.freeze()  # imported modules live on: spare the collector from traversing them while data arrives
    with choose_observer(json_lines=as_json) as observer:
        reception = trio.run(_receive_unless_interrupted, request, observer, machine)
        observer.finished(reception)


def _print_dry_run(found: DryRun, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"event": "result", "ok": True, "dry_run": True, **dataclasses.asdict(found)}))
    else:
        click.echo(found.text(), err=True)


def _multicast_group(text: str) -> str:
    import ipaddress

    try:
        group = ipaddress.ip_address(text)
    except ValueError as error:
        raise ConfigurationError(
            f"--group {text!r} isn't an IP address: give a multicast address such as {GROUP_IPV4_DEFAULT}"
        ) from error
    if not group.is_multicast:
        raise ConfigurationError(
            f"--group {text} isn't a multicast address: give one such as {GROUP_IPV4_DEFAULT}, the default"
        )
    return str(group)


async def _receive_unless_interrupted(
    request: ReceiveRequest, observer: ReceptionObserver, machine: MachineOptions
) -> Reception:
    """Receive; on SIGINT or SIGTERM notify the sender and stop.

    Raises:
        KeyboardInterrupt: a signal arrived.
        DiskcastError: as :func:`receiver.reception.receive.receive_image`.
    """
    from receiver.reception.receive import receive_image

    reception = await run_until_signal(
        functools.partial(
            receive_image, request, observer, lambda receiver: machine.serve_metrics(receiver.status)
        )
    )
    if reception is None:
        raise KeyboardInterrupt
    return reception
