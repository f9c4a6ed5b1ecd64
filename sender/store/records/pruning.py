"""Pruning of images: policy, decisions and reasons."""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

KEEP_LAST_DEFAULT: Final = 3
KEEP_LAST_MAX: Final = 1000


class KeepReason(enum.StrEnum):
    """Reason for which an image stays."""

    LAST = "last"
    """One of the newest versions of its name."""
    YOUNG = "young"
    PINNED = "pinned"
    SCHEDULE = "schedule"
    """A schedule casts it."""
    ROOM = "room"
    """The last image that a room got."""
    CAST = "cast"
    """A planned or running cast uses it."""
    FOREIGN_FOLDER = "foreign_folder"
    """The file is in a folder that doesn't belong to the daemon."""
    UNREADABLE = "unreadable"
    """Damaged, or not on this machine."""


@dataclasses.dataclass(frozen=True, slots=True)
class PrunePolicy:
    """Rules of an operator.

    Attributes:
        keep_last: newest versions of each name that stay, at least one.
        younger_than_days: images that appeared or were packed within this time stay; 0 for no such rule.
    """

    keep_last: int = KEEP_LAST_DEFAULT
    younger_than_days: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class PruneDecision:
    """The decision for one image.

    Attributes:
        reasons: rules that keep it; empty if it is deleted.
    """

    image_id: str
    name: str
    number: int
    location: str
    source: str
    stored_bytes: int
    reasons: tuple[KeepReason, ...]

    @property
    def deleted(self) -> bool:
        """True if no rule keeps the image."""
        return not self.reasons


@dataclasses.dataclass(frozen=True, slots=True)
class PrunePreview:
    """All decisions of a policy.

    Attributes:
        preview: digest of the policy and of everything that would be deleted.
        freed_bytes: size of the files to delete.
    """

    preview: str
    freed_bytes: int
    deleted: tuple[PruneDecision, ...]
    kept: tuple[PruneDecision, ...]
