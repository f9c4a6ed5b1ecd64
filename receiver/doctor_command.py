"""``diskcast-agent doctor``: what works on this machine and what doesn't, and how to mend it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from protocol.constants import DATA_PORT_DEFAULT, GROUP_IPV4_DEFAULT
from protocol.findings import Finding, Status, plain_lines, require_no_failure, result_json, summary
from receiver.doctor import examine
from receiver.service.agent_token import read_token

_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}


@click.command()
@click.option(
    "--interface", required=True, metavar="IF", help="Network interface of the room, as in ip link."
)
@click.option("--target", metavar="TARGET", help="What is to be written, as with receive.")
@click.option("--server", metavar="URL", help="The daemon that diskcast-agent run would check in with.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File that holds the agent's token, as with run.",
)
@click.option("--group", default=GROUP_IPV4_DEFAULT, show_default=True, help="Multicast group of the cast.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=DATA_PORT_DEFAULT,
    show_default=True,
    help="UDP port of the cast.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
def doctor(
    interface: str,
    target: str | None,
    server: str | None,
    token_file: Path | None,
    group: str,
    port: int,
    as_json: bool,
) -> None:
    """Try out what a receiver needs, and say how to mend what doesn't work. Changes nothing, needs no root."""
    token = "" if server is None else read_token(token_file)

    async def run() -> list[Finding]:
        return await examine(interface, group=group, port=port, target=target, server=server, token=token)

    findings = trio.run(run)
    if as_json:
        for finding in findings:
            click.echo(json.dumps(finding.to_json()))
    elif sys.stdout.isatty():
        _print_table(findings)
    else:
        for line in (*plain_lines(findings), summary(findings)):
            click.echo(line)
    require_no_failure(findings)
    if as_json:
        click.echo(json.dumps(result_json(findings)))


def _print_table(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("check", overflow="fold")
    table.add_column("found", overflow="fold")
    for finding in findings:
        style = _STYLES[finding.status]
        mend = f"\n[bold]mend: {escape(finding.mend)}[/bold]" if finding.mend else ""
        status = f"[{style}]{finding.status.value}[/{style}]"
        table.add_row(status, escape(finding.check), escape(finding.detail) + mend)
    console = Console(highlight=False)
    console.print(table)
    console.print(summary(findings))
