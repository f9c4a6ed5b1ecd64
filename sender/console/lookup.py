"""Lookup of records by the names that operators use, where the API requires an id."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final, TypeVar
from urllib.parse import quote

from protocol.errors import ServerRefusedError
from sender.console.client import Client
from sender.store.records.access import Token
from sender.store.records.casts import Cast, CastPhase, Schedule
from sender.store.records.images import Image, matching_images
from sender.store.records.machines import Machine

T = TypeVar("T")

_SEARCH_COUNT_MAX: Final = 20_000
"""Records searched for a name: more than any site has machines."""
_NAMED_MAX: Final = 5


def path(*parts: str) -> str:
    """Return a path such as ``/rooms/lab-1/live``, each part quoted."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def find_machine(client: Client, text: str) -> Machine:
    """Find a machine by id, name, hardware address, serial number or asset tag.

    Raises:
        ServerRefusedError: no machine matches, or several do.
    """
    try:
        return client.get(path("machines", text), Machine)
    except ServerRefusedError as error:
        if error.details.get("status") not in (HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY):
            raise
    wanted = text.casefold()

    def fits(machine: Machine) -> bool:
        keys = (machine.name, machine.serial, machine.asset_tag, *machine.macs)
        return wanted in {key.casefold() for key in keys if key}

    found = [machine for machine in _searched(client.listed("/machines", Machine)) if fits(machine)]
    return _single("machine", text, found, lambda machine: f"{machine.machine_id} ({machine.name})")


def find_image(client: Client, text: str) -> Image:
    """Find an image by name, version of a name, id, start of its id, or file name: see :func:`matching_images`.

    Raises:
        ServerRefusedError: no image matches, or several do.
    """
    found = matching_images(_searched(client.listed("/images", Image)), text)
    return _single("image", text, found, lambda image: image.image_id)


def find_schedule(client: Client, text: str) -> Schedule:
    """Find a schedule by name or id.

    Raises:
        ServerRefusedError: no schedule matches, or several do.
    """
    schedules = _searched(client.listed("/schedules", Schedule))
    found = [schedule for schedule in schedules if text in (schedule.name, schedule.schedule_id)]
    return _single("schedule", text, found, lambda schedule: schedule.schedule_id)


def find_token(client: Client, text: str) -> Token:
    """Find a token by name or id.

    Raises:
        ServerRefusedError: no token matches, or several do.
    """
    found = [
        token for token in _searched(client.listed("/tokens", Token)) if text in (token.name, token.token_id)
    ]
    return _single("token", text, found, lambda token: token.token_id)


def find_running_cast(client: Client) -> Cast:
    """Find the only cast that is running.

    Raises:
        ServerRefusedError: none runs, or several do.
    """
    phases = [phase for phase in CastPhase if phase.live]
    found = [
        cast for phase in phases for cast in _searched(client.listed("/casts", Cast, {"phase": phase.value}))
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ServerRefusedError("no cast is running: name one that `diskcast casts list` lists")
    several = ", ".join(f"{cast.cast_id} ({cast.image_name})" for cast in found[:_NAMED_MAX])
    raise ServerRefusedError(f"{len(found)} casts are running: name one, such as {several}")


def _searched(records: Iterable[T]) -> Iterable[T]:
    return itertools.islice(records, _SEARCH_COUNT_MAX)


def _single(kind: str, text: str, found: list[T], named: Callable[[T], str]) -> T:
    if len(found) == 1:
        return found[0]
    if not found:
        raise ServerRefusedError(f"there is no {kind} {text!r}: `diskcast {kind}s list` lists them")
    several = ", ".join(named(record) for record in found[:_NAMED_MAX])
    raise ServerRefusedError(
        f"{len(found)} {kind}s are called {text!r}: choose one by its id, such as {several}"
    )
