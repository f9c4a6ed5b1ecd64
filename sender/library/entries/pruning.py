"""The pruning policy: the decision for each image, without side effects.

An image is deleted only if no rule keeps it and its file is in a folder that belongs to the daemon.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from sender.store.records.images import Image, ImageState
from sender.store.records.pruning import KeepReason, PruneDecision, PrunePolicy, PrunePreview


def plan_pruning(
    images: Iterable[Image],
    policy: PrunePolicy,
    uses: Mapping[str, Sequence[KeepReason]],
    is_deletable: Callable[[Image], bool],
    now: datetime,
) -> PrunePreview:
    """Decide for each image.

    Args:
        images: images of the library.
        policy: the operator's rules.
        uses: schedules, rooms and casts by image id.
        is_deletable: returns True for a complete file that belongs to the daemon.
        now: the time.
    """
    everything = sorted(
        images, key=lambda image: (image.name.casefold(), image.name, -image.number, image.image_id)
    )
    ranks = _ranks(everything)
    decisions = [
        PruneDecision(
            image.image_id,
            image.name,
            image.number,
            image.location,
            image.source,
            image.stored_bytes,
            tuple(_reasons(image, policy, ranks.get(image.image_id), uses, is_deletable, now)),
        )
        for image in everything
    ]
    deleted = tuple(each for each in decisions if each.deleted)
    facts = [
        dataclasses.asdict(policy),
        [[each.image_id, each.location, each.stored_bytes] for each in deleted],
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    kept = tuple(each for each in decisions if not each.deleted)
    return PrunePreview(digest, sum(each.stored_bytes for each in deleted), deleted, kept)


def _ranks(images: Iterable[Image]) -> dict[str, int]:
    """Return the rank of each usable image among those of its name, 0 for the newest."""
    ranks: dict[str, int] = {}
    counts: collections.Counter[str] = collections.Counter()
    for image in images:
        if image.state is not ImageState.DAMAGED and image.number:
            ranks[image.image_id] = counts[image.name]
            counts[image.name] += 1
    return ranks


def _reasons(
    image: Image,
    policy: PrunePolicy,
    rank: int | None,
    uses: Mapping[str, Sequence[KeepReason]],
    is_deletable: Callable[[Image], bool],
    now: datetime,
) -> Iterable[KeepReason]:
    if rank is None or image.state is not ImageState.AVAILABLE:
        yield KeepReason.UNREADABLE
    elif not is_deletable(image):
        yield KeepReason.FOREIGN_FOLDER
    if rank is not None and rank < max(1, policy.keep_last):
        yield KeepReason.LAST
    appeared = max(image.first_seen_at, image.packed_at or image.first_seen_at)
    if policy.younger_than_days and now - appeared < timedelta(days=policy.younger_than_days):
        yield KeepReason.YOUNG
    if image.pinned:
        yield KeepReason.PINNED
    yield from dict.fromkeys(uses.get(image.image_id, ()))
    if image.in_use_by and KeepReason.CAST not in uses.get(image.image_id, ()):
        yield KeepReason.CAST
