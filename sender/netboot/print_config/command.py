"""``diskcast netboot print-config``: its options."""

from __future__ import annotations

import ipaddress

import click

from protocol.errors import ConfigurationError
from sender.netboot.print_config.dhcp_settings import DhcpServerKind, DhcpSettings, render_settings
from sender.netboot.serve.boot_files import ServiceAddress
from sender.netboot.serve.options import HTTP_PORT_OPTION, SECURE_BOOT_OPTION


@click.command("print-config")
@click.argument(
    "dhcp_server", metavar="DHCP_SERVER", type=click.Choice([kind.value for kind in DhcpServerKind])
)
@click.option(
    "--address",
    required=True,
    metavar="ADDRESS",
    help="IPv4 address of the boot service for the machines.",
)
@HTTP_PORT_OPTION
@SECURE_BOOT_OPTION
def print_config(dhcp_server: str, address: str, http_port: int, secure_boot: bool) -> None:
    """Print the settings by which a DHCP server names the boot files.

    For networks where `diskcast netboot serve` can't add them itself: machines that ignore its offers, Secure Boot with
    GRUB, or a DHCP server on the same machine. DHCP_SERVER is dnsmasq, isc, kea, windows, mikrotik or openwrt.

    \b
    Examples:
      diskcast netboot print-config dnsmasq --address 10.0.0.2
      diskcast netboot print-config windows --address 10.0.0.2 --secure-boot > diskcast.ps1
    """  # noqa: D301
    try:
        parsed = ipaddress.IPv4Address(address)
    except ipaddress.AddressValueError as error:
        raise ConfigurationError(
            f"--address {address!r} isn't an IPv4 address: give the one of `diskcast netboot serve`"
        ) from error
    settings = DhcpSettings(ServiceAddress(parsed, http_port), secure_boot)
    click.echo(render_settings(DhcpServerKind(dhcp_server), settings), nl=False)
