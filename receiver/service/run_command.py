"""The command ``run``: the agent in service mode. What works is imported when it runs."""

from __future__ import annotations

import contextlib
import enum
import gc
import importlib.metadata
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from protocol.constants import ASSEMBLY_BYTES_DEFAULT, MIB
from protocol.errors import ConfigurationError
from receiver.interruption import unless_interrupted
from receiver.reception.receive_command import memory_bytes
from receiver.service.agent_token import TOKEN_VARIABLE, read_token
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


@click.command(short_help="Wait for casts of a daemon, and receive each.")
@writing_options
@click.option("--interface", required=True, metavar="IF", help="Network interface that casts come in by.")
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
    "--name",
    metavar="NAME",
    help="This machine's name until the operator gives it one.  [default: the host name]",
)
@click.option(
    "--identity",
    metavar="TEXT",
    help="Check in with this as serial number and without hardware addresses: for several agents on one machine.",
)
@click.option(
    "--after-cast",
    type=click.Choice([choice.value for choice in AfterCast]),
    default=AfterCast.WAIT.value,
    show_default=True,
    help="What to do once an image is on the target, verified; after a cast that failed the agent waits for the next.",
)
@click.option(
    "--memory",
    default=f"{ASSEMBLY_BYTES_DEFAULT // MIB}MiB",
    show_default=True,
    metavar="SIZE",
    help="Buffers for blocks on their way to the disk.",
)
@click.option(
    "--metrics-port", type=click.IntRange(1, 65535), metavar="P", help="Serve Prometheus metrics here."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
def run(
    target: str,
    target_options: TargetOptions,
    interface: str,
    servers: tuple[str, ...],
    token_file: Path | None,
    name: str | None,
    identity: str | None,
    after_cast: str,
    memory: str,
    metrics_port: int | None,
    as_json: bool,
) -> None:
    """Wait for casts of a daemon, and receive each that is for this machine.

    The agent checks in with the daemon (diskcast serve) and goes on doing so for ever: while it waits, while it
    receives, and while the daemon is away. What it is told to receive is written to the target as receive would do it:
    all that is there and differs from the image is overwritten. The target is looked for and judged before each cast.
    """
    import trio

    from receiver.reception.network import require_interface
    from receiver.service.log import JsonServiceLog, PlainServiceLog

    if not servers:
        raise ConfigurationError(
            f"no daemon to check in with: give its URL, for example --server http://192.0.2.1:7400, "
            f"or {SERVER_VARIABLE}"
        )
    require_interface(interface)
    log = JsonServiceLog() if as_json else PlainServiceLog()
    action = AfterCast(after_cast)

    def make_service() -> Service:
        import random

        from receiver.reception.agent import AgentOptions
        from receiver.reception.receive import CastOptions, receive_cast
        from receiver.service.agent_service import About, Service
        from receiver.service.identity import Identity, describe_machine, read_identity
        from receiver.service.server_client import DaemonRing, ServerClient

        token = read_token(token_file)
        own_name = name or platform.node() or "unnamed"
        return Service(
            DaemonRing([ServerClient(url, token) for url in servers], random.Random()),
            About(
                name=own_name,
                version=importlib.metadata.version("diskcast"),
                identity=read_identity(interface) if identity is None else Identity((), identity, ""),
                inventory=describe_machine(interface),
            ),
            CastOptions(
                target=target,
                target_options=target_options,
                interface=interface,
                agent=AgentOptions(
                    name=own_name,
                    inventory={},
                    assembly_bytes=memory_bytes(memory),
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
        with _metrics(metrics_port, service):
            await service.run()
        return True

    gc.freeze()  # the modules stay: the collector needn't look at them again and again while data arrives
    done = trio.run(unless_interrupted, serve)
    log.stopped()
    if done and action in (AfterCast.REBOOT, AfterCast.POWEROFF):
        _order(action)


def _metrics(port: int | None, service: Service) -> contextlib.AbstractContextManager[None]:
    if port is None:
        return contextlib.nullcontext()
    from receiver.reception.metrics import serve_metrics

    return serve_metrics(port, service.status)


def _order(action: AfterCast) -> None:
    """Reboot or switch off.

    Raises:
        ConfigurationError: systemd doesn't take the order.
    """
    from receiver.disk.fit_programs import StepError, run_program

    try:
        run_program(["systemctl", action.value], time_limit_s=ACTION_TIMEOUT_S)
    except StepError as error:
        raise ConfigurationError(
            f"the image is on the target, but --after-cast {action.value} didn't work: {error}"
        ) from error
