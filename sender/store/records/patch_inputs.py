"""Declared settings of machines: templates of rooms and variables of machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime

from sender.store.records.machines import ImportProblem


@dataclasses.dataclass(frozen=True, slots=True)
class RoomTemplate:
    """A room's template of machine patches, which may hold secrets.

    Attributes:
        text: the template, as TOML.
        changed_by: the last operator who changed it.
    """

    room_id: str
    text: str = dataclasses.field(repr=False)
    changed_at: datetime
    changed_by: str


@dataclasses.dataclass(frozen=True, slots=True)
class RoomPatchSet:
    """A signed set of the patches of a room's machines for one image.

    Attributes:
        name: signed name of the set.
        changed_by: the operator who uploaded it.
    """

    room_id: str
    image_id: str
    name: str
    machine_count: int
    changed_at: datetime
    changed_by: str


@dataclasses.dataclass(frozen=True, slots=True)
class MachineVariables:
    """The variables of a machine for its room's template, some of them secret.

    Attributes:
        variables: value of each variable.
        changed_at: time of the last change; None if there was none.
        changed_by: the last operator who changed them; empty if nobody did.
    """

    machine_id: str
    variables: Mapping[str, str] = dataclasses.field(repr=False)
    changed_at: datetime | None
    changed_by: str


@dataclasses.dataclass(frozen=True, slots=True)
class VariablesImport:
    """Result of an import of variables: all lines of a file, or nothing if there are ``problems``."""

    changed: int
    unchanged: int
    problems: tuple[ImportProblem, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class SeedPreview:
    """The settings of one machine, as a template declares them.

    Attributes:
        patch_machine_id: the id that its patch is for, such as the serial number.
        hostname: host name; empty with a problem.
        files: content of the seed's files, by name; secrets are replaced by ``(secret)``.
        problem: reason why no patch can be made, for people; empty without one.
    """

    machine_id: str
    machine_name: str
    patch_machine_id: str
    hostname: str
    files: Mapping[str, str]
    problem: str = ""
