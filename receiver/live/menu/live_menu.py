"""The menu in the live system: its settings from this boot, its consoles those of the kernel, its end a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from protocol.control.boot_parameters import AfterCast, BootParameters
from receiver.live.agent_options import agent_options
from receiver.live.console_status import SCREEN_DEVICE
from receiver.live.menu.console import open_consoles
from receiver.live.menu.menu import MenuEnd, run_menu
from receiver.live.menu.settings import MenuSettings
from receiver.live.network_setup import Lease
from receiver.service.restart import restart_now
from receiver.shared.consoles import serial_consoles


def menu_settings(parameters: BootParameters, lease: Lease | None, name: str, token: str) -> MenuSettings:
    """Return the settings of the menu.

    Args:
        parameters: settings of this boot.
        lease: the interface for casts; None without a network.
        name: name of this machine.
        token: token that enrols this machine; empty if there is none.

    Raises:
        ConfigurationError: a pin is invalid.
    """
    # The interface doesn't matter without a daemon.
    service = agent_options(parameters, lease or Lease("lo", "127.0.0.1/8", "", "", ""), name, token)
    usable = lease is not None and bool(parameters.servers)
    return MenuSettings(
        machine_name=name,
        trust=service.trust,
        target_options=service.target_options,
        after=parameters.after,
        service=dataclasses.replace(service, target="") if usable else None,
        image_url=parameters.image_url,
        live=True,
    )


def console_paths() -> list[Path]:
    """Return the screen and the serial lines of this machine."""
    return [Path(SCREEN_DEVICE), *(Path("/dev", name) for name in serial_consoles())]


def run_live_menu(settings: MenuSettings, consoles: Sequence[Path]) -> None:
    """Run the menu until it ends, then restart or power off.

    Raises:
        ConfigurationError: no console is left, or the kernel refuses to restart.
    """
    with open_consoles(consoles) as console:
        action = final_action(run_menu(console, settings), settings.after)
        console.say("The machine powers off." if action is AfterCast.POWEROFF else "The machine restarts.")
    restart_now(action)


def final_action(end: MenuEnd, after: AfterCast) -> AfterCast:
    """Return the action that ends the live system: the technician's choice, or the configured one after a success."""
    powers_off = end is MenuEnd.POWER_OFF or (end is MenuEnd.IMAGED and after is AfterCast.POWEROFF)
    return AfterCast.POWEROFF if powers_off else AfterCast.REBOOT
