"""Pruning: a preview of the policy's decisions, and the deletion of exactly what a preview showed."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from protocol.errors import DiskcastError
from sender.library.entries.pruning import plan_pruning
from sender.library.library import Library
from sender.refusals import conflict
from sender.store.records.images import Image, latest_of
from sender.store.records.pruning import KeepReason, PrunePolicy, PrunePreview

if TYPE_CHECKING:
    from sender.actors import Actor
    from sender.store.store import Store

_log = structlog.get_logger(__name__)


class ImagePruner:
    """Prunes the library. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store, library: Library) -> None:
        self._store = store
        self._library = library

    async def preview(self, policy: PrunePolicy) -> PrunePreview:
        """Return the decisions of a policy; delete nothing.

        Raises:
            DatabaseError: the uses of images are unknown.
        """
        images = self._library.images()
        return plan_pruning(images, policy, await self._uses(images), self._library.is_own, datetime.now(UTC))

    async def apply(self, policy: PrunePolicy, preview: str, actor: Actor) -> PrunePreview:
        """Delete what a preview showed, and return it; files that can't be deleted are left out.

        Raises:
            RequestRefusedError: something else would be deleted now.
            DatabaseError: nothing was deleted, as it can't be recorded.
        """
        found = await self.preview(policy)
        if found.preview != preview:
            raise conflict("the library or the policy changed since the preview: look at a new preview")
        deleted = []
        for each in found.deleted:
            detail: dict[str, object] = {
                "name": f"{each.name}@{each.number}",
                "location": each.location,
                "bytes": each.stored_bytes,
            }
            add = self._store.audit.add
            await self._store.run(
                add, actor.name, "image.prune", f"image {each.image_id}", detail, actor.request_id
            )
            try:
                await self._library.delete_own(each.image_id)
            except (DiskcastError, OSError) as error:
                _log.warning("image_not_pruned", image_id=each.image_id, reason=str(error))
                continue
            deleted.append(each)
        if deleted:
            await self._library.scan()
        return PrunePreview(preview, sum(each.stored_bytes for each in deleted), tuple(deleted), found.kept)

    async def _uses(self, images: Sequence[Image]) -> Mapping[str, Sequence[KeepReason]]:
        found: dict[str, list[KeepReason]] = collections.defaultdict(list)
        uses = self._store.image_uses
        fixed, followed = await self._store.run(uses.of_schedules)
        for name in followed:
            newest = latest_of(image for image in images if image.name == name)
            if newest is not None:
                fixed.add(newest.image_id)
        for image_ids, reason in (
            (fixed, KeepReason.SCHEDULE),
            (await self._store.run(uses.of_rooms), KeepReason.ROOM),
            (await self._store.run(uses.of_casts), KeepReason.CAST),
        ):
            for image_id in image_ids:
                found[image_id].append(reason)
        return found
