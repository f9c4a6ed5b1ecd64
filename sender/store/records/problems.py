"""Problems that an operator should look at."""

from __future__ import annotations

import dataclasses
from datetime import datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something that an operator should look at, while it lasts.

    Attributes:
        kind: bounded: ``database``, ``library``, ``cast``, ``disk``, ``clock``.
        text: the thing, the cause and the mend.
    """

    kind: str
    text: str
    since: datetime
