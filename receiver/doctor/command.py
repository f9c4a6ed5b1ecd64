"""The command ``diskcast-agent doctor``."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from protocol.program.findings import Finding
from protocol.program.findings_report import report_findings
from protocol.program.options import CA_OPTION, GROUP_OPTION, JSON_OPTION, PIN_OPTION, PORT_OPTION
from protocol.program.peer_trust import PeerTrust
from receiver.doctor.receiver_doctor import examine
from receiver.doctor.trust_checks import check_trust
from receiver.service.agent_token import read_token
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.image_gate import utc_now
from receiver.trust.options import trust_options


@click.command()
@click.option("--interface", required=True, metavar="IF", help="Network interface to receive on.")
@click.option("--target", metavar="TARGET", help="Target to check, as for receive.")
@click.option("--server", metavar="URL", help="URL of a daemon to check, as for run.")
@PIN_OPTION
@CA_OPTION
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with a token of the role enrol, as for run.",
)
@trust_options
@GROUP_OPTION
@PORT_OPTION
@JSON_OPTION
def doctor(
    interface: str,
    target: str | None,
    server: str | None,
    pins: tuple[str, ...],
    ca_file: Path | None,
    token_file: Path | None,
    trust: TrustOptions,
    group: str,
    port: int,
    as_json: bool,
) -> None:
    """Check that this machine can receive casts, and suggest fixes. Changes nothing and needs no root.

    \b
    Examples:
      diskcast-agent doctor --interface eth0
      diskcast-agent doctor --interface eth0 --target /dev/sda
      diskcast-agent doctor --interface eth0 --server https://192.0.2.1:7400 --pin PIN
    """  # noqa: D301 - \b is click's mark
    peer_trust = PeerTrust.of_options(pins, ca_file)
    token = "" if server is None else read_token(token_file)

    async def run() -> list[Finding]:
        return await examine(
            interface, group=group, port=port, target=target, server=server, trust=peer_trust, token=token
        )

    findings = trio.run(run)
    findings += check_trust(trust, utc_now(), in_service=server is not None)
    report_findings(findings, as_json=as_json)
