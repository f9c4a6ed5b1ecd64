"""The command ``diskcast-agent run``: the agent in service mode. Modules that do the work are imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from protocol.control.boot_parameters import AfterCast
from protocol.errors import ConfigurationError
from protocol.program.options import JSON_OPTION
from receiver.reception.machine_options import MachineOptions, machine_options
from receiver.service.agent_token import (
    read_token,
    refuse_token_on_kernel_command_line,
)
from receiver.service.options import SERVER_VARIABLE, daemon_options
from receiver.target.options import TargetOptions, writing_options
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.options import trust_options


@click.command()
@writing_options
@machine_options
@trust_options
@daemon_options
@click.option(
    "--after-cast",
    type=click.Choice([choice.value for choice in AfterCast]),
    default=AfterCast.WAIT.value,
    show_default=True,
    help="Action after a successful cast.",
)
@click.option("--allow-capture", is_flag=True, help="Let the daemon make images of this machine's disks.")
@JSON_OPTION
def run(
    target: str,
    target_options: TargetOptions,
    machine: MachineOptions,
    trust: TrustOptions,
    servers: tuple[str, ...],
    pins: tuple[str, ...],
    ca_file: Path | None,
    token_file: Path | None,
    after_cast: str,
    allow_capture: bool,
    as_json: bool,
) -> None:
    """Wait for casts of a daemon, and receive each one that is for this machine.

    The agent keeps checking in with the daemon (diskcast serve) while it waits, receives, or the daemon is unavailable.
    Of several daemons of one database it uses the first that answers. Each cast is written as by receive: an image that
    no trusted key signed is refused, and everything on the target that differs from the image is overwritten. The
    target is chosen and checked before each cast. After a failed cast the agent waits for the next one.

    \b
    Examples:
      diskcast-agent run --target auto --interface eth0 --server https://192.0.2.1:7400 --pin PIN
      diskcast-agent run --target /dev/sda --interface eth0 --server https://192.0.2.1:7400 --pin PIN \\
          --token-file /etc/diskcast/token --after-cast reboot
    """  # noqa: D301 - \b is click's mark
    from protocol.program.peer_trust import PeerTrust
    from receiver.service.log import JsonServiceLog, PlainServiceLog
    from receiver.service.serve_casts import ServiceOptions, serve_casts

    if not servers:
        raise ConfigurationError(
            f"no daemon to check in with: give its URL, for example --server https://192.0.2.1:7400, "
            f"or {SERVER_VARIABLE}"
        )
    refuse_token_on_kernel_command_line()
    options = ServiceOptions(
        machine=machine,
        target=target,
        target_options=target_options,
        trust=trust,
        servers=servers,
        certificates=PeerTrust.of_options(pins, ca_file),
        token=read_token(token_file),
        after=AfterCast(after_cast),
        allow_capture=allow_capture,
    )
    serve_casts(options, JsonServiceLog() if as_json else PlainServiceLog())
