"""``diskcast netboot serve``: its options."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from ipaddress import IPv4Address
from pathlib import Path

import click

from protocol.errors import ConfigurationError
from sender.console.options import checked_room, daemon_options, find_daemon
from sender.netboot.serve.boot_scripts import KERNEL_ARGUMENTS_DEFAULT, is_kernel_arguments
from sender.netboot.serve.options import HTTP_PORT_OPTION, SECURE_BOOT_OPTION

MODES = ("proxy", "dhcp", "files")
RULES = ("off", "ask", "auto")
"""The values of ``DhcpMode`` and ``UnknownMachines``: ``--help`` needs no web framework; a test compares them."""


@click.command()
@click.argument("medium", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--interface",
    "interfaces",
    multiple=True,
    metavar="IF",
    show_default="the only one",
    help="Network interface of the machines; repeatable.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="proxy",
    show_default=True,
    help="Part in DHCP: boot files, addresses too, or none.",
)
@click.option(
    "--room", metavar="ROOM", callback=checked_room, help="Room of unknown machines; created if missing."
)
@click.option(
    "--unknown-machines",
    type=click.Choice(RULES),
    show_default="of ROOM, ask for a new one",
    help="Set ROOM's rule for unknown machines that boot.",
)
@SECURE_BOOT_OPTION
@click.option(
    "--pool",
    metavar="FIRST-LAST",
    show_default="upper half of the network",
    help="With --mode dhcp: addresses for the machines.",
)
@HTTP_PORT_OPTION
@click.option(
    "--kernel-arguments",
    metavar="WORDS",
    default=KERNEL_ARGUMENTS_DEFAULT,
    show_default=True,
    help="Further words of the kernel command line.",
)
@daemon_options
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Lowest level of messages in the log.",
)
@click.option(
    "--json", "json_lines", is_flag=True, help="Log JSON lines, and report readiness as JSON on stdout."
)
def serve(
    medium: Path | None,
    interfaces: tuple[str, ...],
    mode: str,
    room: str | None,
    unknown_machines: str | None,
    secure_boot: bool,
    pool: str | None,
    http_port: int,
    kernel_arguments: str,
    server: str | None,
    pins: tuple[str, ...],
    ca_file: Path | None,
    token_file: Path | None,
    log_level: str,
    json_lines: bool,
) -> int:
    """Boot the machines of a network from DIR, which `diskcast netboot build` made.

    Without DIR it is netboot in the state directory, such as /var/lib/diskcast/netboot, and is built when it is missing
    or outdated.

    The daemon decides at every boot: the live system for a machine with a cast, its own disk for any other. Without an
    answer from the daemon it is the disk. The mode proxy leaves addresses to the network's own DHCP server. Needs root,
    or CAP_NET_BIND_SERVICE.

    \b
    Examples:
      diskcast netboot serve --interface eth1 --room lab-1 --unknown-machines auto
      diskcast netboot serve /srv/boot --interface eth1 --room lab-1 --secure-boot
      diskcast netboot serve /srv/boot --interface eth2 --mode dhcp
    """  # noqa: D301  \b is click's, for a paragraph that isn't wrapped
    url, token, trust = find_daemon(server, token_file, pins, ca_file)
    from sender.config.sections import LogSection
    from sender.console.client import Client
    from sender.logs import configure_logging
    from sender.netboot.build.local_plan import step_notes
    from sender.netboot.serve.boot_service import BootServiceOptions, DhcpMode, run_boot_service
    from sender.netboot.serve.daemon_client import BootApiClient
    from sender.netboot.serve.networks import find_networks
    from sender.netboot.serve.preparation import prepare_medium, prepare_room
    from sender.store.records.boots import UnknownMachines
    from sender.systemd_notify import SystemdNotifier

    if not is_kernel_arguments(kernel_arguments):
        raise ConfigurationError(
            f"--kernel-arguments {kernel_arguments!r}: only letters, digits, spaces and .,:@_/=+- are possible in all "
            "boot loaders"
        )
    if pool is not None and mode != "dhcp":
        raise ConfigurationError("--pool needs --mode dhcp: in other modes this service leases no addresses")
    options = BootServiceOptions(
        networks=find_networks(interfaces),
        mode=DhcpMode(mode),
        http_port=http_port,
        secure_boot=secure_boot,
        room=room,
        kernel_arguments=kernel_arguments,
        pool=None if pool is None else _parse_pool(pool),
    )
    if options.pool is not None and len(options.networks) > 1:
        raise ConfigurationError("--pool needs a single --interface: each network has its own addresses")
    if unknown_machines is not None and room is None:
        raise ConfigurationError("--unknown-machines needs --room: it is the rule of a room")
    note = step_notes(as_json=json_lines)
    opened = prepare_medium(medium, note)
    if room is not None:
        with Client(url, token, trust or None) as client:
            rule = None if unknown_machines is None else UnknownMachines(unknown_machines)
            prepare_room(client, room, rule, note)
    log = {"level": log_level, "format": "json" if json_lines else "auto"}
    configure_logging(LogSection.model_validate(log))

    def report_ready() -> None:
        places = ", ".join(f"{network.interface_name} ({network.address.ip})" for network in options.networks)
        SystemdNotifier.from_environment().ready(f"serving boots on {places}")
        if json_lines:
            click.echo(json.dumps({"event": "ready", "mode": mode, "networks": places, "server": url}))
        else:
            click.echo(
                f"diskcast serves boots on {places}, mode {mode}; the daemon at {url} decides", err=True
            )

    async def run() -> None:
        async with BootApiClient(url, token, trust or None) as daemon:
            await run_boot_service(options, opened, daemon, report_ready)

    asyncio.run(run())
    if json_lines:
        click.echo(json.dumps({"event": "result", "ok": True, "exit_code": 0}))
    return 0


def _parse_pool(text: str) -> tuple[IPv4Address, IPv4Address]:
    first, _, last = text.partition("-")
    try:
        return ipaddress.IPv4Address(first.strip()), ipaddress.IPv4Address(last.strip())
    except ipaddress.AddressValueError as error:
        raise ConfigurationError(
            f"--pool {text!r} isn't FIRST-LAST, such as 10.0.0.100-10.0.0.199"
        ) from error
