"""Problems that an operator should look at."""

from __future__ import annotations

import dataclasses
from datetime import datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """A current problem for the operator.

    Attributes:
        kind: one of ``database``, ``library``, ``cast``, ``disk``, ``clock``.
        text: the thing, the cause and the fix.
    """

    kind: str
    text: str
    since: datetime
