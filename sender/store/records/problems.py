"""Problems that an operator should look at."""

from __future__ import annotations

import dataclasses
from datetime import datetime

from sender.store.records.api_schema import OpenStrEnum


class ProblemKind(OpenStrEnum):
    """The part of the daemon that has a problem."""

    DATABASE = "database"
    LIBRARY = "library"
    CAST = "cast"
    DISK = "disk"
    CLOCK = "clock"
    ENROLMENT = "enrolment"
    REQUEST = "request"
    CERTIFICATE = "certificate"


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """A current problem for the operator.

    Attributes:
        kind: one of ``database``, ``library``, ``cast``, ``disk``, ``clock``, ``enrolment``, ``request``,
            ``certificate``.
        text: the thing, the cause and the fix.
    """

    kind: ProblemKind
    text: str
    since: datetime
