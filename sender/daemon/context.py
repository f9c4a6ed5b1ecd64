"""What the daemon is made of, for everybody who serves it to the outside."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import TYPE_CHECKING

from sender.store.records.casts import Cast, CastEvent, TimelinePoint
from sender.store.records.problems import Problem

if TYPE_CHECKING:
    from sender.config.server_config import ServerConfig
    from sender.daemon.cast_commands import CastCommands
    from sender.daemon.check_in import CheckInDesk
    from sender.daemon.event_feed import LiveFeed
    from sender.daemon.live_state import RoomsNow
    from sender.daemon.presence import Presence
    from sender.daemon.supervisor import Supervisor
    from sender.library.library import Library
    from sender.store.store import Store
    from sender.store.write_behind import Recorder


@dataclasses.dataclass(slots=True)
class Services:
    """The parts of a running daemon.

    Attributes:
        supervisor: runs casts.
        steering: what operators ask of casts.
        presence: which machines are there now.
        rooms_now: rooms and casts as they are now.
        live: what goes on, for those who watch.
        desk: answers agents that check in.
        started_at: when this process began.
    """

    config: ServerConfig
    store: Store
    recorder: Recorder
    library: Library
    supervisor: Supervisor
    steering: CastCommands
    presence: Presence
    rooms_now: RoomsNow
    live: LiveFeed
    desk: CheckInDesk
    started_at: datetime

    def problems(self) -> list[Problem]:
        """What an operator should look at now, the longest-lasting first."""
        found = [
            self.store.problem,
            self.recorder.problem,
            *self.library.problems(),
            *self.supervisor.problems(),
        ]
        return sorted(
            (problem for problem in found if problem is not None), key=lambda problem: problem.since
        )

    async def find_cast(self, cast_id: str) -> Cast | None:
        """A cast, or None; one that runs here is known without the database."""
        live = self.supervisor.live_run(cast_id)
        return live.cast if live is not None else await self.store.run(self.store.casts.get, cast_id)

    async def timeline(self, cast_id: str) -> tuple[list[TimelinePoint], list[CastEvent]]:
        """A cast's charts and what happened in it."""
        live = self.supervisor.live_run(cast_id)
        if live is not None:
            return list(live.points), list(live.events)
        return (
            await self.store.run(self.store.casts.timeline, cast_id),
            await self.store.run(self.store.casts.events, cast_id),
        )
