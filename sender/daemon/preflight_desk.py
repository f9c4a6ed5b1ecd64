"""The preflight of casts: machines judged by the hardware that their agents reported, for the image of a cast."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from protocol.errors import DatabaseError
from protocol.model.hardware import Hardware
from protocol.preflight.judgement import Grade, judge_machine, refusal_text, worst_grade
from protocol.preflight.requirements import DriverAliases, ImageRequirements
from protocol.preflight.sectors import SectorNeeds
from sender.imaging.contents.image_contents import ContentsState
from sender.refusals import invalid
from sender.store.records.preflight import Preflight, PreflightMachine

if TYPE_CHECKING:
    from sender.library.library import Library
    from sender.store.records.hardware import MachineHardware
    from sender.store.records.images import Image
    from sender.store.records.machines import Machine
    from sender.store.store import Store

_IMAGES_KEPT: Final = 16
"""Images whose requirements are kept ready: those of the running casts and of a few that are being planned."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Known:
    requirements: ImageRequirements
    drivers: DriverAliases | None
    is_complete: bool
    problem: str = ""


class PreflightDesk:
    """Judge of machines. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store, library: Library) -> None:
        self._store = store
        self._library = library
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def matrix(self, image: Image, room_id: str | None, machine_ids: Sequence[str]) -> Preflight:
        """Judge the machines of a room, or these machines.

        Raises:
            RequestRefusedError: there is no such room or machine.
            DatabaseError: the database is unavailable.
        """
        machines = await self._machines(room_id, machine_ids)
        known = await self._image(image.image_id, image.raw_bytes)
        ids = [machine.machine_id for machine in machines]
        reported: dict[str, MachineHardware] = await self._store.run(self._store.hardware.of_machines, ids)
        rows = []
        for machine in machines:
            found = reported.get(machine.machine_id)
            checks = judge_machine(
                known.requirements, None if found is None else found.hardware, known.drivers
            )
            rows.append(PreflightMachine(machine.machine_id, machine.name, worst_grade(checks), checks))
        return Preflight(
            image.image_id,
            image.name,
            known.is_complete,
            known.problem,
            sum(row.grade is Grade.REFUSE for row in rows),
            sum(row.grade is Grade.WARN for row in rows),
            tuple(rows),
        )

    async def refusal(self, image_id: str, raw_bytes: int, machine_id: str, hardware: Hardware | None) -> str:
        """Return the reason why a machine can't get an image; empty if it can, as far as is known.

        Args:
            image_id: the image of a cast.
            raw_bytes: its size.
            machine_id: the machine.
            hardware: its hardware if it reported that to this daemon.
        """
        if hardware is None:
            with contextlib.suppress(DatabaseError):  # the agent itself refuses a disk that doesn't fit
                found = await self._store.run(self._store.hardware.of_machines, [machine_id])
                hardware = found[machine_id].hardware if machine_id in found else None
        if hardware is None:
            return ""
        known = await self._image(image_id, raw_bytes)
        return refusal_text(judge_machine(known.requirements, hardware, known.drivers))

    async def _machines(self, room_id: str | None, machine_ids: Sequence[str]) -> list[Machine]:
        store = self._store
        if room_id is not None and await store.run(store.rooms.get, room_id) is None:
            raise invalid(f"room_id: there is no room {room_id!r}")
        if not machine_ids:
            found: list[Machine] = [] if room_id is None else await store.run(store.machines.of_room, room_id)
            return found
        machines: list[Machine] = await store.run(store.machines.get_many, machine_ids)
        missing = set(machine_ids) - {
            machine.machine_id for machine in machines if room_id in (None, machine.room_id)
        }
        if missing:
            where = f" in room {room_id!r}" if room_id is not None else ""
            raise invalid(f"machine_ids: there is no machine {min(missing)!r}{where}")
        return machines

    async def _image(self, image_id: str, raw_bytes: int) -> _Known:
        """Return an image's requirements; only its size until its contents are read."""
        known = self._known.get(image_id)
        if known is not None:
            self._known.move_to_end(image_id)
            return known
        found = await self._library.inspection.contents(image_id)
        if found.state is not ContentsState.READY or found.contents is None:
            return _Known(ImageRequirements(SectorNeeds(raw_bytes)), None, False, found.problem)
        aliases = found.contents.driver_aliases()
        drivers = None if aliases is None else DriverAliases(aliases)
        return self.keep(image_id, found.contents.requirements, drivers)

    def keep(self, image_id: str, requirements: ImageRequirements, drivers: DriverAliases | None) -> _Known:
        """Keep the requirements of an image, which never change, and drop those of the image used least recently."""
        known = self._known[image_id] = _Known(requirements, drivers, True)
        while len(self._known) > _IMAGES_KEPT:
            self._known.popitem(last=False)
        return known
