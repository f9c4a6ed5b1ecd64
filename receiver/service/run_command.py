"""The command ``diskcast-agent run``: the agent in service mode. Modules that do the work are imported when it runs."""

from __future__ import annotations

import enum
import gc
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from protocol.errors import ConfigurationError
from protocol.program.options import CA_OPTION, JSON_OPTION, PIN_OPTION
from receiver.reception.machine_options import MachineOptions, machine_options
from receiver.service.agent_token import (
    TOKEN_VARIABLE,
    read_token,
    refuse_token_on_kernel_command_line,
)
from receiver.service.machine_credentials import MachineCredentials
from receiver.shared.signal_scope import run_until_signal
from receiver.target.options import TargetOptions, writing_options
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.options import trust_options

if TYPE_CHECKING:
    from protocol.program.peer_trust import PeerTrust
    from receiver.service.agent_service import AgentService
    from receiver.service.log import ServiceLog

SERVER_VARIABLE: Final = "DISKCAST_SERVER"

JOIN_TIMEOUT_S: Final = 60.0
SENDER_TIMEOUT_S: Final = 300.0
"""A restarted daemon, or another one that takes its casts over, needs seconds; replacing a rack's switch takes minutes,
after which nothing has to be scanned again."""

ACTION_TIMEOUT_S: Final = 60.0
"""Time allowed for ``systemctl`` to accept the command."""


class AfterCast(enum.StrEnum):
    """Action after a successful cast."""

    WAIT = "wait"
    EXIT = "exit"
    REBOOT = "reboot"
    POWEROFF = "poweroff"


@click.command()
@writing_options
@machine_options
@trust_options
@click.option(
    "--server",
    "servers",
    multiple=True,
    envvar=SERVER_VARIABLE,
    metavar="URL",
    help=f"URL of a daemon; repeatable.  [env: {SERVER_VARIABLE}, space-separated]",
)
@PIN_OPTION
@CA_OPTION
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Token file (role enrol); {TOKEN_VARIABLE} may hold the token itself.",
)
@click.option(
    "--after-cast",
    type=click.Choice([choice.value for choice in AfterCast]),
    default=AfterCast.WAIT.value,
    show_default=True,
    help="Action after a successful cast.",
)
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
    import trio

    from protocol.program.peer_trust import PeerTrust
    from receiver.reception.network.interface import require_interface
    from receiver.service.log import JsonServiceLog, PlainServiceLog

    if not servers:
        raise ConfigurationError(
            f"no daemon to check in with: give its URL, for example --server https://192.0.2.1:7400, "
            f"or {SERVER_VARIABLE}"
        )
    refuse_token_on_kernel_command_line()
    certificates = PeerTrust.of_options(pins, ca_file)
    require_interface(machine.interface)
    log = JsonServiceLog() if as_json else PlainServiceLog()
    action = AfterCast(after_cast)

    async def serve() -> bool:
        # Built here, since it needs trio's clock.
        service = _build_service(
            machine,
            target,
            target_options,
            trust,
            servers,
            certificates,
            MachineCredentials(read_token(token_file), trust.state_directory),
            log,
            exit_after_success=action is not AfterCast.WAIT,
        )
        with machine.serve_metrics(service.status):
            await service.run()
        return True

    gc.freeze()  # imported modules live on: spare the collector from traversing them while data arrives
    done = trio.run(run_until_signal, serve)
    log.stopped()
    if done and action in (AfterCast.REBOOT, AfterCast.POWEROFF):
        _run_systemctl(action)


def _build_service(
    machine: MachineOptions,
    target: str,
    target_options: TargetOptions,
    trust: TrustOptions,
    servers: tuple[str, ...],
    certificates: PeerTrust,
    credentials: MachineCredentials,
    log: ServiceLog,
    *,
    exit_after_success: bool,
) -> AgentService:
    """Build the service.

    Raises:
        ConfigurationError: a URL is invalid, or this machine has no identity.
    """
    import random

    from receiver.reception.machine_identity import describe_machine
    from receiver.reception.receive import receive_cast
    from receiver.service.agent_service import AgentDescription, AgentService
    from receiver.service.server_client import DaemonRing, ServerClient

    ring = DaemonRing([ServerClient(url, credentials, certificates) for url in servers], random.Random())
    identity = machine.identity()
    if not any((identity.macs, identity.serial, identity.asset_tag)):
        raise ConfigurationError(
            f"this machine has no identity: {machine.interface} has no hardware address, and the firmware no serial "
            "number or asset tag; name it with --identity, for example --identity pc07"
        )
    return AgentService(
        ring,
        AgentDescription(
            name=machine.name,
            version=importlib.metadata.version("diskcast"),
            identity=identity,
            inventory=describe_machine(machine.interface),
        ),
        machine.receive_options(
            target, target_options, trust, join_timeout_s=JOIN_TIMEOUT_S, sender_timeout_s=SENDER_TIMEOUT_S
        ),
        credentials,
        receive=receive_cast,
        log=log,
        exit_after_success=exit_after_success,
    )


def _run_systemctl(action: AfterCast) -> None:
    """Reboot or power off.

    Raises:
        ConfigurationError: systemd refuses the command.
    """
    from receiver.disk.fit.programs import StepError, run_program

    try:
        run_program(["systemctl", action.value], confinement=None, time_limit_s=ACTION_TIMEOUT_S)
    except StepError as error:
        raise ConfigurationError(
            f"the image is on the target, but --after-cast {action.value} failed: {error}; run it by hand"
        ) from error
