"""The command ``diskcast-agent menu``: the menu for one machine, in any live system."""

from __future__ import annotations

import platform
from pathlib import Path

import click

from protocol.constants import ASSEMBLY_BYTES_DEFAULT
from protocol.control.boot_parameters import AfterCast
from protocol.errors import ConfigurationError
from receiver.disk.fit.fit_target import FitOptions
from receiver.service.agent_token import read_token
from receiver.service.options import daemon_options
from receiver.target.options import TargetOptions
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.options import trust_options


@click.command()
@click.option(
    "--console",
    "consoles",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="TTY",
    help="Terminal to use; repeatable.  [default: this one]",
)
@daemon_options
@click.option("--interface", metavar="IF", help="Network interface to receive a daemon's cast on.")
@click.option("--name", metavar="NAME", help="Name of this machine in lists and logs.  [default: host name]")
@click.option(
    "--identity", metavar="TEXT", help="Serial number to report instead of this machine's identity."
)
@click.option("--image", "image_url", default="", metavar="URL", help="Image to suggest.")
@click.option(
    "--directory",
    "directories",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory with image files; repeatable.",
)
@click.option("--grow", is_flag=True, help="Grow the last partition and its filesystem to fill the disk.")
@click.option("--efi-entry", "efi_label", metavar="LABEL", help="Create a UEFI boot entry of this name.")
@trust_options
@click.option(
    "--after-cast",
    type=click.Choice([choice.value for choice in AfterCast]),
    default=AfterCast.EXIT.value,
    show_default=True,
    help="Action after the image is on the disk.",
)
def menu(
    consoles: tuple[Path, ...],
    servers: tuple[str, ...],
    pins: tuple[str, ...],
    ca_file: Path | None,
    token_file: Path | None,
    interface: str | None,
    name: str | None,
    identity: str | None,
    image_url: str,
    directories: tuple[Path, ...],
    trust: TrustOptions,
    after_cast: str,
    *,
    grow: bool,
    efi_label: str | None,
) -> None:
    """Image this machine by a menu, for a technician at its console.

    The image comes from a daemon, from a web server, or from a file; its signature is verified in each case before a
    disk is opened. The technician confirms the disk by its serial number. The live system of diskcast netboot starts
    this menu when nothing is planned for a machine and somebody asks for it.

    \b
    Examples:
      diskcast-agent menu --server https://192.0.2.1:7400 --pin PIN --interface eth0
      diskcast-agent menu --directory /media/stick --trust-key lab.pub
      diskcast-agent menu --console /dev/tty1 --console /dev/ttyS0 --image https://192.0.2.1/lab.dci
    """  # noqa: D301 - \b is click's mark
    from protocol.program.peer_trust import PeerTrust
    from receiver.live.menu.console import open_consoles
    from receiver.live.menu.menu import MenuEnd, run_menu
    from receiver.live.menu.settings import MenuSettings
    from receiver.service.restart import prepare_restart

    target_options = TargetOptions(fit=FitOptions(grow=grow, efi_label=efi_label))
    after = AfterCast(after_cast)
    restart = prepare_restart(after)
    machine_name = name or platform.node() or "unnamed"
    service = None
    if servers:
        from receiver.reception.machine_options import MachineOptions
        from receiver.reception.network.interface import require_interface
        from receiver.service.serve_casts import ServiceOptions

        if interface is None:
            raise ConfigurationError("--server needs --interface: name the network interface for the cast")
        require_interface(interface)
        service = ServiceOptions(
            machine=MachineOptions(interface, machine_name, identity, ASSEMBLY_BYTES_DEFAULT, None),
            target="",
            target_options=target_options,
            trust=trust,
            servers=servers,
            certificates=PeerTrust.of_options(pins, ca_file),
            token=read_token(token_file),
            after=after,
        )
    settings = MenuSettings(
        machine_name=machine_name,
        trust=trust,
        target_options=target_options,
        after=after,
        service=service,
        image_url=image_url,
        directories=directories,
    )
    with open_consoles(consoles) as console:
        end = run_menu(console, settings)
    if end is MenuEnd.IMAGED and restart is not None:
        restart()
