"""The command ``run``: the agent in service mode. What works is imported when it runs."""

from __future__ import annotations

import enum
import gc
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from protocol.errors import ConfigurationError
from receiver.reception.machine_options import MachineOptions, machine_options
from receiver.service.agent_token import TOKEN_VARIABLE, read_token
from receiver.shared.signal_scope import unless_interrupted
from receiver.target.options import TargetOptions, writing_options

if TYPE_CHECKING:
    from receiver.service.agent_service import Service

SERVER_VARIABLE: Final = "DISKCAST_SERVER"

JOIN_TIMEOUT_S: Final = 60.0
SENDER_TIMEOUT_S: Final = 300.0
"""A daemon that is started again, or another one that takes its casts over, needs seconds; a rack's switch that is
replaced needs minutes, after which nothing has to be scanned again."""

ACTION_TIMEOUT_S: Final = 60.0
"""For ``systemctl`` to take the order."""


class AfterCast(enum.StrEnum):
    """What to do once a cast's image is on the target."""

    WAIT = "wait"
    EXIT = "exit"
    REBOOT = "reboot"
    POWEROFF = "poweroff"


@click.command()
@writing_options
@machine_options
@click.option(
    "--server",
    "servers",
    multiple=True,
    envvar=SERVER_VARIABLE,
    metavar="URL",
    help="A daemon's URL; several times for several daemons of one database: the first that answers is used.  "
    f"[env: {SERVER_VARIABLE}, separated by spaces]",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"File that holds a token of the role enrol.  [env: {TOKEN_VARIABLE}, the token itself]",
)
@click.option(
    "--after-cast",
    type=click.Choice([choice.value for choice in AfterCast]),
    default=AfterCast.WAIT.value,
    show_default=True,
    help="What to do once an image is on the target, verified; after a cast that failed the agent waits for the next.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
def run(
    target: str,
    target_options: TargetOptions,
    machine: MachineOptions,
    servers: tuple[str, ...],
    token_file: Path | None,
    after_cast: str,
    as_json: bool,
) -> None:
    """Wait for casts of a daemon, and receive each that is for this machine.

    The agent checks in with the daemon (diskcast serve) and goes on doing so for ever: while it waits, while it
    receives, and while the daemon is away. What it is told to receive is written to the target as receive would do it:
    all that is there and differs from the image is overwritten. The target is looked for and judged before each cast.
    """
    import trio

    from receiver.reception.network.interface import require_interface
    from receiver.service.log import JsonServiceLog, PlainServiceLog

    if not servers:
        raise ConfigurationError(
            f"no daemon to check in with: give its URL, for example --server http://192.0.2.1:7400, "
            f"or {SERVER_VARIABLE}"
        )
    require_interface(machine.interface)
    log = JsonServiceLog() if as_json else PlainServiceLog()
    action = AfterCast(after_cast)

    def make_service() -> Service:
        import random

        from receiver.reception.cast_receiver import CastReceiverOptions
        from receiver.reception.machine_identity import describe_machine
        from receiver.reception.receive import ReceiveOptions, receive_cast
        from receiver.service.agent_service import About, Service
        from receiver.service.server_client import DaemonRing, ServerClient

        token = read_token(token_file)
        daemons = DaemonRing([ServerClient(url, token) for url in servers], random.Random())
        identity = machine.identity()
        if not any((identity.macs, identity.serial, identity.asset_tag)):
            raise ConfigurationError(
                f"nothing tells this machine from others: {machine.interface} has no hardware address, and the "
                "firmware no serial number or asset tag; name it with --identity, for example --identity pc07"
            )
        return Service(
            daemons,
            About(
                name=machine.name,
                version=importlib.metadata.version("diskcast"),
                identity=identity,
                inventory=describe_machine(machine.interface),
            ),
            ReceiveOptions(
                target=target,
                target_options=target_options,
                interface=machine.interface,
                receiver=CastReceiverOptions(
                    name=machine.name,
                    inventory={},
                    assembly_bytes=machine.assembly_bytes,
                    join_timeout_s=JOIN_TIMEOUT_S,
                    sender_timeout_s=SENDER_TIMEOUT_S,
                ),
            ),
            receive=receive_cast,
            log=log,
            one_cast=action is not AfterCast.WAIT,
        )

    async def serve() -> bool:
        service = make_service()  # needs trio's clock
        with machine.metrics(service.status):
            await service.run()
        return True

    gc.freeze()  # the modules stay: the collector needn't look at them again and again while data arrives
    done = trio.run(unless_interrupted, serve)
    log.stopped()
    if done and action in (AfterCast.REBOOT, AfterCast.POWEROFF):
        _order(action)


def _order(action: AfterCast) -> None:
    """Reboot or switch off.

    Raises:
        ConfigurationError: systemd doesn't take the order.
    """
    from receiver.disk.fit.programs import StepError, run_program

    try:
        run_program(["systemctl", action.value], time_limit_s=ACTION_TIMEOUT_S)
    except StepError as error:
        raise ConfigurationError(
            f"the image is on the target, but --after-cast {action.value} didn't work: {error}"
        ) from error
