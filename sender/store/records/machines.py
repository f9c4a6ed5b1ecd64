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
        interface: network interface of the sender for this room; empty: chosen by the daemon.
        machine_count: number of its machines.
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
    """A machine, switched on or not.

    Attributes:
        machine_id: id that the store has created.
        macs: hardware addresses, lower case with colons.
        address: last known network address.
        inventory: hardware and software as its agent describes it.
        agent_version: version of its agent; empty before its first check-in.
        position: place for people, for example ``row 2, seat 5``.
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
    """A problem in a line of an imported file; lines count from 1."""

    line: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class ImportResult:
    """Result of an import: all lines of a file, or nothing if there are ``problems``."""

    added: int
    changed: int
    unchanged: int
    problems: tuple[ImportProblem, ...]
