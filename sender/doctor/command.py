"""The command ``diskcast doctor``: check this machine and show how to fix problems."""

from __future__ import annotations

import datetime
from pathlib import Path

import click
from click.core import ParameterSource

from protocol.constants import CONTROL_PORT_DEFAULT
from protocol.errors import MissingDependencyError
from protocol.program.findings import Finding
from protocol.program.findings_report import report_findings
from protocol.program.options import GROUP_OPTION, JSON_OPTION, PORT_OPTION
from sender.addresses import parse_endpoint, parse_group
from sender.doctor.certificate_doctor import judge_sender_certificate
from sender.doctor.export_doctor import judge_exports
from sender.doctor.key_doctor import judge_keys, judge_signing_key
from sender.doctor.sender_doctor import examine


@click.command()
@click.option(
    "--interface", metavar="IF", show_default="all usable ones", help="Network interface of the room."
)
@GROUP_OPTION
@PORT_OPTION
@click.option(
    "--control",
    default=f":{CONTROL_PORT_DEFAULT}",
    show_default=True,
    metavar="HOST:PORT",
    help="Address and port of the control API.",
)
@click.option(
    "--server", is_flag=True, help="Check the daemon: configuration, database, folders, ports, limits."
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    show_default="as for diskcast serve",
    help="With --server: configuration file of the daemon.",
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
    """Check what a sender needs on this machine, and show how to fix problems.

    Changes nothing and needs no root. Test datagrams never leave this machine.

    \b
    Examples:
      diskcast doctor
      diskcast doctor --interface eth1
      diskcast doctor --server --config /etc/diskcast/diskcast.toml
    """  # noqa: D301  click needs the backspace
    _reject_options_of_other_mode(context, server=server)
    if server:
        findings = _examine_server(config, interface)
    else:
        endpoint = parse_endpoint(control, CONTROL_PORT_DEFAULT)
        findings = examine(interface, group=parse_group(group), port=port, control=endpoint)
        findings.append(judge_sender_certificate())
        findings.append(judge_signing_key())
        findings += judge_exports()
    findings += judge_keys(datetime.datetime.now(datetime.UTC))
    report_findings(findings, as_json=as_json)


def _reject_options_of_other_mode(context: click.Context, *, server: bool) -> None:
    """Reject options of the other mode: the daemon's group and ports are in its configuration."""
    misplaced = ("group", "port", "control") if server else ("config",)
    for name in misplaced:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(
                f"--{name} can't be used with --server: the daemon's is in its configuration"
                if server
                else f"--{name} needs --server"
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
