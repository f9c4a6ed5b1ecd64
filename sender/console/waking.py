"""``diskcast machines wake``: machines are woken, and watched until each is awake or given up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from protocol.errors import MachinesNotAwakeError
from sender.console.options import api_command, checked_room

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output
    from sender.store.records.wakes import Wake, WokenMachine

_POLL_INTERVAL_S: Final = 1.0


@click.command()
@click.argument("machine", nargs=-1)
@click.option(
    "--room", "room_id", metavar="ROOM", callback=checked_room, help="Wake all machines of this room."
)
@click.option("--no-wait", is_flag=True, help="Exit when the daemon has started to wake the machines.")
@api_command
def wake(
    client: Client, output: Output, machine: tuple[str, ...], *, room_id: str | None, no_wait: bool
) -> None:
    """Wake machines by Wake-on-LAN, and wait until they are on.

    The daemon sends magic packets from each of its network interfaces to every hardware address of a machine. It wakes
    a few machines at a time (`diskcast rooms change --wave-size`). A machine is awake when it boots from the network or
    its agent checks in; after three minutes it is given up, and the exit code isn't 0.

    \b
    Examples:
      diskcast machines wake pc07 pc08
      diskcast machines wake --room lab-1
      diskcast machines wake --room lab-1 --no-wait --json
    """  # noqa: D301
    from sender.console.lookup import find_machine
    from sender.store.records.wakes import Wake

    if bool(machine) == (room_id is not None):
        raise click.UsageError("name machines, or a room with --room")
    found = [find_machine(client, text).machine_id for text in machine]
    started = client.create("/wakes", Wake, {"room_id": room_id, "machine_ids": found})
    if no_wait:
        output.done(f"waking {len(started.machines)} machines", started)
        return
    ended = _watch(client, output, started)
    _show_end(output, ended)


def _watch(client: Client, output: Output, wake: Wake) -> Wake:
    """Show the machines as they wake; return the wake after its end."""
    from sender.console.client import to_json as json_of
    from sender.console.lookup import path
    from sender.console.output import emit, print_message
    from sender.store.records.wakes import WAKING_STATES, Wake

    shown: set[str] = set()
    problem = ""
    waves = max((machine.wave for machine in wake.machines), default=0)
    if not output.json_lines:
        in_waves = f", {wake.wave_size} every {wake.pause_s:g} s" if waves > 1 else ""
        print_message(f"waking {len(wake.machines)} machines{in_waves}")
    while True:
        if wake.problem and wake.problem != problem and not output.json_lines:
            print_message(wake.problem)
        problem = wake.problem
        for machine in wake.machines:
            if machine.state in WAKING_STATES or machine.machine_id in shown:
                continue
            shown.add(machine.machine_id)
            if output.json_lines:
                emit("machine", **json_of(machine))
            else:
                print_message(
                    f"{machine.name}: {machine_text(machine)} ({len(shown)} of {len(wake.machines)})"
                )
        if wake.ended_at is not None:
            return wake
        time.sleep(_POLL_INTERVAL_S)
        wake = client.get(path("wakes", wake.wake_id), Wake)


def machine_text(machine: WokenMachine) -> str:
    """Return the state of a machine, with the time that it took."""
    from protocol.shared.units import format_duration
    from sender.labels import WAKE_REASONS, WAKE_STATES

    label = WAKE_STATES[machine.state].text.lower()
    if machine.awake_at is not None and machine.called_at is not None:
        return f"{label} after {format_duration((machine.awake_at - machine.called_at).total_seconds())}"
    reason = WAKE_REASONS.get(machine.state, "")
    return f"{label}: {reason}" if reason else label


def _show_end(output: Output, wake: Wake) -> None:
    """Show the result.

    Raises:
        MachinesNotAwakeError: a machine isn't awake.
    """
    from sender.console.client import to_json as json_of
    from sender.store.records.wakes import AWAKE_STATES

    awake = wake.names(AWAKE_STATES)
    missing = [machine.name for machine in wake.machines if machine.state not in AWAKE_STATES]
    if missing:
        error = MachinesNotAwakeError(
            f"{len(missing)} of {len(wake.machines)} machines aren't awake ({', '.join(missing)}): "
            + (wake.problem or "check their power, and Wake-on-LAN in their firmware")
        )
        error.details = json_of(wake)
        raise error
    output.done(f"all {len(awake)} machines are awake" if len(awake) > 1 else f"{awake[0]} is awake", wake)
