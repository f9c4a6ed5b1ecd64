"""What the daemon is made of, for everybody who serves it to the outside."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import TYPE_CHECKING

from sender.store.records import Problem

if TYPE_CHECKING:
    from sender.daemon.check_in import CheckInDesk
    from sender.daemon.live import LiveFeed
    from sender.daemon.presence import Presence
    from sender.daemon.supervisor import Supervisor
    from sender.library.library import Library
    from sender.server_config import ServerConfig
    from sender.store.database import Store
    from sender.store.recorder import Recorder


@dataclasses.dataclass(slots=True)
class Services:
    """The parts of a running daemon.

    Attributes:
        presence: which machines are there now.
        live: what goes on, for those who watch.
        desk: answers agents that check in.
        started_at: when this process began.
    """

    config: ServerConfig
    store: Store
    recorder: Recorder
    library: Library
    supervisor: Supervisor
    presence: Presence
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
