"""Preparation of a boot service: build the boot medium and create the room, where the operator left that to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

from protocol.errors import ConfigurationError, ServerRefusedError, ServerUnreachableError
from sender.console.client import Client
from sender.console.lookup import path
from sender.netboot.build.builder import build_medium
from sender.netboot.build.local_plan import baked_in_of, local_plan
from sender.netboot.default_medium import default_medium_directory, exists, outdated_because
from sender.netboot.medium import BootMedium
from sender.store.records.boots import UnknownMachines
from sender.store.records.machines import Room

RULE_OF_NEW_ROOM: Final = UnknownMachines.ASK
"""Without it, no machine of a new room would boot the live system; with AUTO, everybody on the network would."""

_RULE_WORDS: Final = {
    UnknownMachines.OFF: "unknown machines boot their disks",
    UnknownMachines.ASK: "machines that boot there wait for approval (--unknown-machines auto admits them)",
    UnknownMachines.AUTO: "machines that boot there are registered in it",
}


def prepare_medium(directory: Path | None, note: Callable[[str], None]) -> BootMedium:
    """Open the boot medium; build the default one if it is missing, or of no use for this machine's daemon.

    Args:
        directory: the operator's choice, which is only opened; None for the default one.
        note: notified of steps.

    Raises:
        DiskcastError: there is no complete medium, or none can be built.
    """
    if directory is not None:
        return BootMedium.open(directory)
    directory, baked_in = default_medium_directory(), baked_in_of((), (), ())
    reason = "there is none yet"
    if exists(directory):
        medium = BootMedium.open(directory)
        key_ids = tuple(key.key.id_text for key in baked_in.keys)
        reason = outdated_because(medium.record, baked_in.pins, key_ids)
        if not reason:
            return medium
    if not baked_in.keys:
        raise ConfigurationError(
            "the boot medium can't be built yet: machines would accept no image, since this user has no signing key; "
            "pack an image first (diskcast pack), or build it by hand (diskcast netboot build --trust-key)"
        )
    note(f"building the boot medium in {directory}, in a minute or a few: {reason}")
    medium = build_medium(local_plan(directory, baked_in), note)
    note("built the boot medium")
    return medium


def prepare_room(
    client: Client, room_id: str, rule: UnknownMachines | None, note: Callable[[str], None]
) -> None:
    """Create the room if it is missing, and set its rule for unknown machines if one is given.

    A daemon that doesn't answer is no reason not to start, nor is a token that may only ask about boots: the service
    asks at every boot.

    Raises:
        ConfigurationError: the rule can't be set with this token.
    """
    try:
        room = _find_room(client, room_id)
        if room is None:
            chosen = rule or RULE_OF_NEW_ROOM
            body = {"room_id": room_id, "name": room_id, "unknown_machines": chosen.value}
            client.create("/rooms", Room, body)
            note(f"created room {room_id}: {_RULE_WORDS[chosen]}")
        elif rule is not None and room.unknown_machines != rule.value:
            client.change(path("rooms", room_id), Room, {"unknown_machines": rule.value})
            note(f"changed room {room_id}: {_RULE_WORDS[rule]}")
    except ServerUnreachableError as error:
        note(f"room {room_id} wasn't checked: {error}")
    except ServerRefusedError as error:
        if rule is not None:
            raise ConfigurationError(
                f"the rule of room {room_id} can't be set: {error}; an operator sets it by `diskcast rooms create` or "
                "`diskcast rooms change`"
            ) from error
        note(f"room {room_id} wasn't checked: {error}")


def _find_room(client: Client, room_id: str) -> Room | None:
    try:
        return client.get(path("rooms", room_id), Room)
    except ServerRefusedError as error:
        if error.details.get("status") == httpx.codes.NOT_FOUND:
            return None
        raise
