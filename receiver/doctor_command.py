"""``diskcast-agent doctor``: what works on this machine and what doesn't, and how to mend it."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from protocol.constants import DATA_PORT_DEFAULT, GROUP_IPV4_DEFAULT
from protocol.program.findings import Finding
from protocol.program.findings_report import report_findings
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
    report_findings(findings, as_json=as_json)
