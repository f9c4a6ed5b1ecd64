"""Where a cast is: its sender and its group, which another daemon's taking over changes in the middle of the cast."""

from __future__ import annotations

import dataclasses

import trio

from protocol.control.check_in import Assignment
from protocol.model.session_records import CastId


@dataclasses.dataclass(frozen=True, slots=True)
class CastPlace:
    """Where to join a cast.

    Attributes:
        cast_id: the cast.
        control_url: of its sender's control API.
        source: address that its datagrams come from; empty if only the control API knows.
        group: multicast address; empty likewise.
        port: UDP port of the group; 0 likewise.
    """

    cast_id: CastId
    control_url: str
    source: str = ""
    group: str = ""
    port: int = 0


def place_of(assignment: Assignment) -> CastPlace:
    """Where the daemon says that a cast is."""
    return CastPlace(
        assignment.cast_id,
        assignment.control_url,
        assignment.sender_address,
        assignment.group,
        assignment.port,
    )


class Whereabouts:
    """A cast's place as it is known now, between who hears of it and who has to go there.

    Attributes:
        place: the latest.
    """

    def __init__(self, place: CastPlace) -> None:
        """Begin at ``place``."""
        self.place = place
        self._changed = trio.Event()

    def move(self, place: CastPlace) -> bool:
        """The cast is at ``place`` now; whether that is news."""
        assert place.cast_id == self.place.cast_id
        if place == self.place:
            return False
        self.place = place
        self._changed.set()
        self._changed = trio.Event()
        return True

    async def elsewhere(self, known: CastPlace) -> CastPlace:
        """The place, as soon as it is another one than ``known``."""
        while self.place == known:
            await self._changed.wait()
        return self.place
