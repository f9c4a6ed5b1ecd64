"""The order of a start: settings, devices, findings, network, daemon, then the agent, the menu or a shell."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]

from protocol.constants import MIB
from protocol.control.boot_parameters import AfterCast, BootParameters, LiveMode
from protocol.errors import ConfigurationError, DiskcastError, EnrolmentRefusedError
from receiver.live.console_status import open_reporter
from receiver.live.daemon_check import await_daemon
from receiver.live.devices import start_udev
from receiver.live.disk_state import read_disk_state
from receiver.live.hardware_findings import read_findings
from receiver.live.messages import (
    AGENT_FAILED,
    DEVICES_MISSED,
    INVALID_SETTING,
    MENU_FAILED,
    NO_TOKEN,
    NOT_ADMITTED,
    UNKNOWN_PARAMETER,
    BootStopError,
)
from receiver.live.network_cards import UNNAMED, mac_name, read_cards
from receiver.live.network_setup import Lease, NetworkSetup, machine_name
from receiver.live.reporter import BootReporter
from receiver.live.settings import SettingsPaths, read_settings
from receiver.service.agent_token import read_token, refuse_token_on_kernel_command_line
from receiver.service.restart import restart_now

RESTART_AFTER_S: Final = 60.0
"""Time to read an error, and not to flood a boot server while a room's network is broken."""

TOKEN_FILE: Final = Path("/etc/diskcast/token")
"""A token for enrolment, inside a signed image."""

LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")

AGENT_STARTED: Final = "agent started"
MENU_STARTED: Final = "menu started"
"""Markers for tests, and for people who read a serial console's log."""


@dataclasses.dataclass(frozen=True, slots=True)
class LiveContext:
    """The facts about this boot that the agent and the menu need.

    Attributes:
        parameters: settings of this boot.
        lease: the address from DHCP; None without a network, which only the menu can do without.
        name: name of this machine.
        reporter: shows events to the person at the machine.
    """

    parameters: BootParameters
    lease: Lease | None
    name: str
    reporter: BootReporter


def main() -> int:
    """Start the live system; return only when there is nothing else to do than to restart the machine."""
    reporter = open_reporter(importlib.metadata.version("diskcast"))
    try:
        start(reporter)
    except BootStopError as stop:
        reporter.reopen()
        reporter.stopped_by(str(stop), f"{read_disk_state()}; restart in {RESTART_AFTER_S:.0f} s")
        time.sleep(RESTART_AFTER_S)
        with contextlib.suppress(ConfigurationError):  # process 1 tries it too
            restart_now(AfterCast.REBOOT)
    return 0


def start(reporter: BootReporter) -> None:
    """Run all steps.

    Raises:
        BootStopError: this machine can't be imaged.
    """
    memory_mb = psutil.virtual_memory().total // MIB
    version = importlib.metadata.version("diskcast")
    lockdown = f", lockdown {mode}" if (mode := read_lockdown()) else ""
    reporter.step(f"live system {version}, kernel {os.uname().release}{lockdown}, {memory_mb} MB of memory")
    parameters = read_settings(SettingsPaths())
    reporter.prepare(parameters.target, parameters.after)
    try:
        refuse_token_on_kernel_command_line()
    except ConfigurationError as error:
        raise BootStopError(INVALID_SETTING.text(error=error)) from error
    for name in parameters.unknown:
        reporter.step(UNKNOWN_PARAMETER.text(name=name))
    missed = start_udev()
    if missed:
        reporter.step(DEVICES_MISSED.text(reason=missed))
    for finding in read_findings():
        reporter.step(finding)
    set_host_name(next((mac_name(card.mac) for card in read_cards()), UNNAMED))
    _MODES[parameters.mode](parameters, reporter)


def read_lockdown(path: Path = LOCKDOWN) -> str:
    """Return the kernel's lockdown mode, which Secure Boot turns on; empty without one.

    The file reads ``none [integrity] confidentiality``.
    """
    try:
        words = path.read_text().split()
    except OSError:
        return ""
    mode = next((word.strip("[]") for word in words if word.startswith("[")), "none")
    return "" if mode == "none" else mode


def _run_agent(parameters: BootParameters, reporter: BootReporter) -> None:
    """Receive casts of a daemon."""
    context = connect(parameters, reporter)
    reporter.step(f"daemon {await_daemon(parameters.servers, parameters.pins, reporter.step)}")
    serve(context)


def _run_menu(parameters: BootParameters, reporter: BootReporter) -> None:
    """Run the menu for one machine, also without a network: an image may be on a stick."""
    from receiver.live.menu.live_menu import console_paths, menu_settings, run_live_menu

    lease, name = None, socket.gethostname()
    try:
        context = connect(parameters, reporter)
        lease, name = context.lease, context.name
    except BootStopError as stop:
        reporter.step(str(stop))
    try:
        settings = menu_settings(parameters, lease, name, enrolment_token(parameters))
        reporter.step(MENU_STARTED)
        reporter.close()
        run_live_menu(settings, console_paths())
    except DiskcastError as error:
        raise BootStopError(MENU_FAILED.text(error=error)) from error


def _run_shell(parameters: BootParameters, reporter: BootReporter) -> None:
    """Replace this program by a shell."""
    reporter.step("shell; the machine restarts when you leave it")
    reporter.close()
    os.execv("/bin/busybox", ["busybox", "setsid", "cttyhack", "sh", "-l"])  # noqa: S606 - of the live system


_MODES: Final[dict[LiveMode, Callable[[BootParameters, BootReporter], None]]] = {
    LiveMode.RUN: _run_agent,
    LiveMode.MENU: _run_menu,
    LiveMode.SHELL: _run_shell,
}


def connect(parameters: BootParameters, reporter: BootReporter) -> LiveContext:
    """Set the network up, and name this machine.

    Raises:
        BootStopError: there is no network.
    """
    lease = NetworkSetup(parameters, reporter.step).run()
    server = f" from {lease.server}" if lease.server else ""
    name = machine_name(lease)
    reporter.identify(name, lease.address.partition("/")[0])
    reporter.step(f"network {lease.interface}, {lease.address}{server}, as {name}")
    set_host_name(name)
    return LiveContext(parameters, lease, name, reporter)


def set_host_name(name: str) -> None:
    """Set the kernel's host name, which the agent reports; ``(none)`` otherwise."""
    with contextlib.suppress(OSError):
        socket.sethostname(name)


def enrolment_token(parameters: BootParameters) -> str:
    """Return the token that enrols this machine: of this boot, or inside a signed image; empty if there is none.

    Raises:
        ConfigurationError: the file contains no token.
    """
    return parameters.boot_token or (read_token(TOKEN_FILE) if TOKEN_FILE.exists() else "")


def serve(context: LiveContext) -> None:
    """Run the agent until it restarts the machine.

    Raises:
        BootStopError: the daemon refuses this machine, or the agent stops with an error.
    """
    from receiver.live.agent_options import agent_options
    from receiver.service.serve_casts import serve_casts

    assert context.lease is not None, "only the menu runs without a network"
    token = ""
    try:
        token = enrolment_token(context.parameters)
        options = agent_options(context.parameters, context.lease, context.name, token)
        context.reporter.step(AGENT_STARTED)
        serve_casts(options, context.reporter)
    except EnrolmentRefusedError as error:
        if not token:
            raise BootStopError(NO_TOKEN.text()) from error
        raise BootStopError(NOT_ADMITTED.text(reason=error)) from error
    except DiskcastError as error:
        raise BootStopError(AGENT_FAILED.text(error=error)) from error
