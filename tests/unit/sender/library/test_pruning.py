"""The pruning policy: every rule keeps an image on its own, and only an image without a rule is deleted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from sender.console.image_upkeep import prune
from sender.library.entries.pruning import plan_pruning
from sender.store.records.images import Image, ImageState
from sender.store.records.pruning import KEEP_LAST_DEFAULT, KeepReason, PrunePolicy, PrunePreview

NOW = datetime(2026, 11, 30, tzinfo=UTC)


def image(number: int, name: str = "lab", **fields: object) -> Image:
    made = Image(
        f"{name}{number}".encode().hex().ljust(64, "0"), name, f"/images/{name}-{number}.dci", "folder",
        ImageState.AVAILABLE, 10, 5, 1 << 18, 5, "", None, NOW - timedelta(days=100 - number), number=number,
    )  # fmt: skip
    return dataclasses.replace(made, **fields)


LAB = [image(number) for number in range(1, 6)]


def plan(
    images: Sequence[Image], policy: PrunePolicy, uses: dict[str, list[KeepReason]] | None = None
) -> PrunePreview:
    return plan_pruning(images, policy, uses or {}, lambda each: each.location.startswith("/images/"), NOW)


def numbers(preview: PrunePreview) -> list[int]:
    return [each.number for each in preview.deleted]


def test_the_newest_versions_of_each_name_stay() -> None:
    exam = [image(1, "exam"), image(2, "exam")]
    found = plan([*LAB, *exam], PrunePolicy(keep_last=2))
    assert [(each.name, each.number) for each in found.deleted] == [("lab", 3), ("lab", 2), ("lab", 1)]
    assert found.freed_bytes == 15
    assert numbers(plan(LAB, PrunePolicy(keep_last=0))) == [4, 3, 2, 1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pinned": True}, KeepReason.PINNED),
        ({"in_use_by": ("1a2b3c4d",)}, KeepReason.CAST),
        ({"location": "/mnt/nas/lab-1.dci"}, KeepReason.FOREIGN_FOLDER),
        ({"state": ImageState.DAMAGED}, KeepReason.UNREADABLE),
        ({"state": ImageState.REMOTE}, KeepReason.UNREADABLE),
        ({"number": 0}, KeepReason.UNREADABLE),
        ({"packed_at": NOW}, KeepReason.YOUNG),
        ({"first_seen_at": NOW - timedelta(days=29)}, KeepReason.YOUNG),
    ],
)
def test_one_reason_is_enough(change: dict[str, object], reason: KeepReason) -> None:
    changed = dataclasses.replace(LAB[0], **change)
    found = plan([changed, *LAB[1:]], PrunePolicy(keep_last=1, younger_than_days=30))
    assert changed.image_id not in {each.image_id for each in found.deleted}
    [kept] = [each for each in found.kept if each.image_id == changed.image_id]
    assert kept.reasons == (reason,)


@pytest.mark.parametrize("reason", [KeepReason.SCHEDULE, KeepReason.ROOM, KeepReason.CAST])
def test_an_image_in_use_stays(reason: KeepReason) -> None:
    found = plan(LAB, PrunePolicy(keep_last=1), {LAB[1].image_id: [reason, reason]})
    assert numbers(found) == [4, 3, 1]
    assert next(each for each in found.kept if each.number == 2).reasons == (reason,)


def test_a_remote_version_counts_as_one_of_the_newest() -> None:
    newest = dataclasses.replace(LAB[4], state=ImageState.REMOTE)
    assert numbers(plan([*LAB[:4], newest], PrunePolicy(keep_last=2))) == [3, 2, 1]


def test_a_preview_stands_for_exactly_what_it_shows() -> None:
    policy = PrunePolicy(keep_last=2)
    first = plan(LAB, policy)
    assert plan(LAB[::-1], policy).preview == first.preview
    others = [
        plan([*LAB, image(6)], policy),
        plan(LAB, PrunePolicy(keep_last=3)),
        plan(LAB, PrunePolicy(keep_last=2, younger_than_days=1)),
        plan([dataclasses.replace(LAB[0], stored_bytes=6), *LAB[1:]], policy),
        plan([dataclasses.replace(LAB[0], location="/images/other.dci"), *LAB[1:]], policy),
    ]
    assert len({first.preview, *(each.preview for each in others)}) == 6


def test_the_command_has_the_default_of_the_policy() -> None:
    [option] = [each for each in prune.params if each.name == "keep_last"]
    assert option.default == KEEP_LAST_DEFAULT
