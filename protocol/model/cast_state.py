"""States and outcomes of a cast, numbered as on the wire."""

from __future__ import annotations

import enum


class WireEnum(enum.IntEnum):
    """An enumeration that is a number on the wire and a text in JSON, metrics and logs."""

    @property
    def label(self) -> str:
        """Return the member's name in JSON, metrics and logs."""
        return self.name.lower()


class CastState(WireEnum):
    """State of a cast, as ANNOUNCE and the control API report it."""

    GATHERING = 0
    """Receivers join; the manifest is cast, but no image data."""
    CASTING = 1
    """Image data flows."""
    ENDED = 2
    """No more data is sent."""


class SessionOutcome(WireEnum):
    """Outcome of a cast for its sender, as EOT reports it."""

    COMPLETE = 0
    """No receiver needs data any more, which doesn't mean that every receiver succeeded."""
    CANCELLED = 1
    """The operator cancelled the cast, or no receiver joined in time."""
    FAILED = 2
    """An error of the sender ended the cast."""
