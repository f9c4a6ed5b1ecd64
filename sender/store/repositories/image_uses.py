"""Uses of images by schedules, rooms and casts."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.records.casts import CastPhase
from sender.store.repositories.transactions import Repository, reading

_CAST = tables.casts.c
_SCHEDULE = tables.schedules.c


class ImageUses(Repository):
    """Repository of the images that must stay."""

    @reading
    def of_casts(self) -> set[str]:
        """Return the ids of images that planned and running casts use."""
        query = sa.select(_CAST.image_id).where(_CAST.ended_at.is_(None)).distinct()
        return set(self._connection.execute(query).scalars())

    @reading
    def of_rooms(self) -> set[str]:
        """Return the id of the image that each room got last."""
        room = tables.casts.alias().c
        latest = (
            sa.select(sa.func.max(room.ended_at))
            .where(room.room_id == _CAST.room_id, room.phase == CastPhase.DONE)
            .scalar_subquery()
        )
        query = sa.select(_CAST.image_id).where(_CAST.phase == CastPhase.DONE, _CAST.ended_at == latest)
        return set(self._connection.execute(query).scalars())

    @reading
    def of_schedules(self) -> tuple[set[str], set[str]]:
        """Return the ids of the images of schedules, disabled ones included, and the names that schedules follow."""
        plans: list[dict[str, Any]] = list(self._connection.execute(sa.select(_SCHEDULE.plan)).scalars())
        return {plan["image_id"] for plan in plans}, {
            plan["latest_of"] for plan in plans if plan.get("latest_of")
        }
