"""``diskcast-agent doctor``: what works on this machine and what doesn't, and how to fix it."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from protocol.program.findings import Finding
from protocol.program.findings_report import report_findings
from protocol.program.options import GROUP_OPTION, JSON_OPTION, PORT_OPTION
from receiver.doctor import examine
from receiver.service.agent_token import read_token


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
@GROUP_OPTION
@PORT_OPTION
@JSON_OPTION
def doctor(
    interface: str,
    target: str | None,
    server: str | None,
    token_file: Path | None,
    group: str,
    port: int,
    as_json: bool,
) -> None:
    """Try out what a receiver needs, and say how to fix what doesn't work. Changes nothing, needs no root."""
    token = "" if server is None else read_token(token_file)

    async def run() -> list[Finding]:
        return await examine(interface, group=group, port=port, target=target, server=server, token=token)

    findings = trio.run(run)
    report_findings(findings, as_json=as_json)
