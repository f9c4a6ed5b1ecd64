"""Rooms, machines, and results of an import of machines."""

from __future__ import annotations

import dataclasses
from datetime import datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """A named set of machines.

    Attributes:
        room_id: lower case letters, digits and hyphens.
        site: daemons cast only for rooms of the sites that they serve; empty: any daemon.
        interface: the sender's network interface for this room; empty: the daemon's own choice.
        machine_count: machines that are in it.
    """

    room_id: str
    name: str
    description: str
    site: str
    interface: str
    created_at: datetime
    machine_count: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """A machine, whether it is switched on or not.

    Attributes:
        machine_id: chosen by the store.
        macs: hardware addresses, lower case with colons.
        address: where it was last seen.
        inventory: what it said of itself.
        agent_version: of its agent; empty before it was ever seen.
        position: for people, e.g. ``row 2, seat 5``.
    """

    machine_id: str
    name: str
    room_id: str | None
    macs: tuple[str, ...]
    serial: str
    asset_tag: str
    position: str
    note: str
    address: str
    agent_version: str
    inventory: dict[str, str]
    created_at: datetime
    last_seen_at: datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class ImportProblem:
    """Why a line of an imported file can't be taken; lines count from 1."""

    line: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did: all lines of a file, or nothing if there are ``problems``."""

    added: int
    changed: int
    unchanged: int
    problems: tuple[ImportProblem, ...]
