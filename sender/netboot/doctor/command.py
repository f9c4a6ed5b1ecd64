"""``diskcast netboot doctor``: its options."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

import click

from protocol.program.findings_report import report_findings
from protocol.program.options import JSON_OPTION, Duration

WATCH_S_DEFAULT = 60
"""From power-on to the first question takes machines 10 to 40 s."""


@click.command()
@click.option(
    "--interface",
    metavar="IF",
    show_default="the only one",
    help="Network interface of the machines.",
)
@click.option(
    "--seconds",
    metavar="TIME",
    type=Duration(1, 3600),
    default=WATCH_S_DEFAULT,
    show_default=True,
    help="Time to watch.",
)
@JSON_OPTION
def doctor(interface: str | None, seconds: float, as_json: bool) -> None:
    """Watch machines boot from the network, and name the cause when they don't.

    Start it on the machine with the boot service, then switch a machine on. It asks the network's DHCP server for an
    offer and takes no address; otherwise it only listens. Needs root.

    \b
    Examples:
      diskcast netboot doctor --interface eth1
      diskcast netboot doctor --interface eth1 --seconds 120
    """  # noqa: D301
    from sender.netboot.doctor.judgement import NetworkFacts, judge_machines, judge_network
    from sender.netboot.doctor.packet_capture import watch_wire
    from sender.netboot.doctor.wire_watch import WireWatch
    from sender.netboot.serve.dhcp_probe import find_dhcp_servers
    from sender.netboot.serve.networks import find_networks

    (network,) = find_networks(() if interface is None else (interface,))
    watch = WireWatch()

    async def examine() -> NetworkFacts:
        offers = await find_dhcp_servers(network.interface_name)
        await watch_wire(network.interface_name, watch, seconds)
        address: IPv4Address = network.address.ip
        return NetworkFacts(network.interface_name, address, seconds, offers)

    if not as_json:
        click.echo(f"watching {network.interface_name} for {seconds:g} s: switch a machine on now", err=True)
    facts = asyncio.run(examine())
    report_findings(
        judge_network(facts) + judge_machines(list(watch.machines.values()), facts), as_json=as_json
    )
