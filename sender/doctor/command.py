"""``diskcast doctor``: what works on this machine and what doesn't, and how to fix it."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from protocol.constants import CONTROL_PORT_DEFAULT
from protocol.errors import MissingDependencyError
from protocol.program.findings import Finding
from protocol.program.findings_report import report_findings
from protocol.program.options import GROUP_OPTION, JSON_OPTION, PORT_OPTION
from sender.addresses import parse_endpoint, parse_group
from sender.doctor.sender_doctor import examine


@click.command()
@click.option(
    "--interface", metavar="IF", help="Network interface of the room; all that could do if none is named."
)
@GROUP_OPTION
@PORT_OPTION
@click.option(
    "--control",
    default=f":{CONTROL_PORT_DEFAULT}",
    show_default=True,
    metavar="HOST:PORT",
    help="Where the control API would listen.",
)
@click.option(
    "--server", is_flag=True, help="What the daemon needs: configuration, database, folders, ports, limits."
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With --server: the daemon's configuration, as for diskcast serve.",
)
@JSON_OPTION
@click.pass_context
def doctor(
    context: click.Context,
    interface: str | None,
    group: str,
    port: int,
    control: str,
    server: bool,
    config: Path | None,
    as_json: bool,
) -> None:
    """Try out what a sender needs, and say how to fix what doesn't work. Changes nothing, needs no root."""
    _refuse_mixture(context, server=server)
    if server:
        findings = _examine_server(config, interface)
    else:
        endpoint = parse_endpoint(control, CONTROL_PORT_DEFAULT)
        findings = examine(interface, group=parse_group(group), port=port, control=endpoint)
    report_findings(findings, as_json=as_json)


def _refuse_mixture(context: click.Context, *, server: bool) -> None:
    """The daemon's group and ports are in its configuration, and only the daemon has one."""
    misplaced = ("group", "port", "control") if server else ("config",)
    for name in misplaced:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(
                f"--{name} goes without --server: the daemon's is in its configuration"
                if server
                else f"--{name} goes with --server"
            )


def _examine_server(config: Path | None, interface: str | None) -> list[Finding]:
    try:
        from sender.doctor.server_doctor import examine_server
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the daemon needs {error.name}, which isn't installed: pip install 'diskcast[server]'"
        ) from error
    from sender.serve.serve_command import CONFIG_DEFAULT

    if config is None and CONFIG_DEFAULT.exists():
        config = CONFIG_DEFAULT
    return examine_server(config, interface)
