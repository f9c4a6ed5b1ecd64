"""The command ``receive``: its options, and the loop that they run in. What works is imported when it runs."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
from typing import TYPE_CHECKING

import click

from protocol.constants import (
    DATA_PORT_DEFAULT,
    DISCOVERY_TIMEOUT_S,
    GROUP_IPV4_DEFAULT,
    SENDER_TIMEOUT_S,
)
from protocol.errors import ConfigurationError
from receiver.reception.machine_options import MachineOptions, machine_options
from receiver.shared.signal_scope import unless_interrupted
from receiver.target.options import TargetOptions, target_options

if TYPE_CHECKING:
    from receiver.reception.cast_receiver import Reception
    from receiver.reception.receive import ReceiveRequest
    from receiver.reception.reporting.progress import ReceptionObserver
    from receiver.target.dry_run import DryRun


class _Share(click.ParamType[float]):
    """``5%`` or ``0.05``."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share, 0..1 exclusive."""
        text = str(value)
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = -1.0
        if not 0 <= share < 1:
            self.fail(f"{text!r} isn't a share: write for example 5% or 0.05", param, ctx)
        return share


class _CastIdText(click.ParamType[int]):
    """Eight hexadecimal digits."""

    name = "cast"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The id."""
        if isinstance(value, int):
            return value
        text = str(value)
        if len(text) != 8 or not all(digit in "0123456789abcdefABCDEF" for digit in text):
            self.fail(f"{text!r} isn't a cast id: it has eight hexadecimal digits", param, ctx)
        return int(text, 16)


@click.command()
@target_options
@machine_options
@click.option(
    "--sender", "sender_url", metavar="URL", help="The sender's control URL, instead of listening for it."
)
@click.option("--group", default=GROUP_IPV4_DEFAULT, show_default=True, help="Multicast group to listen on.")
@click.option(
    "--port", default=DATA_PORT_DEFAULT, show_default=True, type=click.IntRange(1, 65535), help="UDP port."
)
@click.option("--cast", "cast_id", type=_CastIdText(), metavar="ID", help="Join this cast and no other.")
@click.option("--image-name", metavar="NAME", help="Join a cast of the image of this name and no other.")
@click.option(
    "--wait",
    "wait_s",
    default=DISCOVERY_TIMEOUT_S,
    show_default=True,
    type=click.FloatRange(0.1),
    metavar="S",
    help="Seconds to look for a sender.",
)
@click.option(
    "--sender-timeout",
    "sender_timeout_s",
    default=SENDER_TIMEOUT_S,
    show_default=True,
    type=click.FloatRange(1),
    metavar="S",
    help="Seconds of silence after which the sender is given up; one that is started again is rejoined.",
)
@click.option(
    "--rehearse-loss",
    default="0",
    type=_Share(),
    metavar="SHARE",
    help="Drop this share of what arrives, for example 5%: to see how a bad network would do.",
)
@click.option("--rehearse-seed", default=1, show_default=True, help="Which datagrams are dropped.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout, the result last.")
def receive(
    target: str,
    target_options: TargetOptions,
    machine: MachineOptions,
    sender_url: str | None,
    group: str,
    port: int,
    cast_id: int | None,
    image_name: str | None,
    wait_s: float,
    sender_timeout_s: float,
    rehearse_loss: float,
    rehearse_seed: int,
    as_json: bool,
) -> None:
    """Receive an image that is cast to this machine, write it to a disk or file, read it back and verify it.

    All that is on the target and differs from the image is overwritten. A target that is in use is refused, and so is
    one that is too small. After an interruption or a power cut the same command goes on. The exit code is 0 only if
    every byte of the image was verified on the target.
    """
    import trio

    from protocol.model.session_records import CastId
    from receiver.reception.cast_receiver import CastReceiverOptions
    from receiver.reception.network.discovery import CastChoice
    from receiver.reception.receive import ReceiveOptions, ReceiveRequest, try_receive
    from receiver.reception.reporting.progress import choose_observer

    options = ReceiveRequest(
        options=ReceiveOptions(
            target=target,
            target_options=target_options,
            interface=machine.interface,
            receiver=CastReceiverOptions(
                name=machine.name,
                inventory={},
                assembly_bytes=machine.assembly_bytes,
                join_timeout_s=wait_s,
                sender_timeout_s=sender_timeout_s,
                rehearse_loss=rehearse_loss,
                rehearse_seed=rehearse_seed,
                identity=machine.identity(),
            ),
        ),
        sender_url=sender_url,
        group=_multicast_group(group),
        port=port,
        choice=CastChoice(None if cast_id is None else CastId(cast_id), image_name),
        wait_s=wait_s,
    )
    if target_options.dry_run:
        _tell_dry_run(trio.run(try_receive, options), as_json=as_json)
        return
    gc.freeze()  # the modules stay: the collector needn't look at them again and again while data arrives
    with choose_observer(json_lines=as_json) as observer:
        try:
            reception = trio.run(_receive_unless_interrupted, options, observer, machine)
        except KeyboardInterrupt:
            observer.interrupted()
            raise
        observer.finished(target, reception)


def _tell_dry_run(found: DryRun, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"event": "result", "ok": True, "dry_run": True, **dataclasses.asdict(found)}))
    else:
        click.echo(found.text(), err=True)


def _multicast_group(text: str) -> str:
    import ipaddress

    try:
        group = ipaddress.ip_address(text)
    except ValueError as error:
        raise ConfigurationError(f"--group {text!r} isn't an IP address") from error
    if not group.is_multicast:
        raise ConfigurationError(
            f"--group {text} isn't a multicast address: {GROUP_IPV4_DEFAULT} is the default"
        )
    return str(group)


async def _receive_unless_interrupted(
    options: ReceiveRequest, observer: ReceptionObserver, machine: MachineOptions
) -> Reception:
    """Receive; SIGINT and SIGTERM end it in an orderly way, so that the sender is told.

    Raises:
        KeyboardInterrupt: a signal came.
        DiskcastError: as :func:`receiver.reception.receive.receive_image`.
    """
    from receiver.reception.receive import receive_image

    reception = await unless_interrupted(
        functools.partial(receive_image, options, observer, lambda agent: machine.metrics(agent.status))
    )
    if reception is None:
        raise KeyboardInterrupt
    return reception
