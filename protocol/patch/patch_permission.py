"""The decision whether a machine applies a patch, taken before the first write.

A patch can put a key into root's account, so the image's signed statement says whose word counts for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from protocol.disk.disk_layout import layout_of
from protocol.errors import PatchRefusedError
from protocol.image.manifest import Manifest
from protocol.patch.machine_patch import MachinePatch
from protocol.patch.patch_set import PatchSet
from protocol.trust.image_policy import AcceptedImage
from protocol.trust.statement import ALL_PARTITIONS, PATCH_PARTITIONS, PatchPolicy


@dataclasses.dataclass(frozen=True, slots=True)
class PatchGrounds:
    """The facts, besides the patch itself, on which the decision rests.

    Attributes:
        accepted: the image that the machine accepted.
        machine_ids: ids of this machine: names, serial number, hardware addresses.
        assigned_id: the patch that the authenticated daemon or sender assigned; None without a network, where the
            operator's command is the word.
        patch_set: a set that a trusted key signed; None without one.
    """

    accepted: AcceptedImage
    machine_ids: Collection[str]
    assigned_id: bytes | None = None
    patch_set: PatchSet | None = None


def require_permitted(patch: MachinePatch, manifest: Manifest, grounds: PatchGrounds) -> None:
    """Raise unless the machine may apply ``patch`` to the image of ``manifest``.

    Raises:
        PatchRefusedError: the patch is for another image or machine, isn't the assigned one, isn't allowed by the
            image's statement, or changes other parts of the disk.
    """
    accepted = grounds.accepted
    if patch.image_id != accepted.image_id or accepted.image_id != manifest.image_id:
        raise _refused(f"it is for the image {patch.image_id.hex()}, not for {accepted.image_id.hex()}")
    if patch.machine_id not in grounds.machine_ids:
        known = ", ".join(sorted(grounds.machine_ids)[:8]) or "unnamed"
        raise _refused(f"it is for the machine {patch.machine_id!r}, and this machine is {known}")
    if grounds.assigned_id is not None and patch.patch_id != grounds.assigned_id:
        raise _refused(
            f"its id is {patch.patch_id.hex()}, and the assigned one is {grounds.assigned_id.hex()}: it was altered"
        )
    policy = PatchPolicy.DAEMON if accepted.verified is None else accepted.verified.statement.patches
    if policy is PatchPolicy.NONE:
        raise _refused(
            f"the signed statement of {accepted.name!r} allows none: sign the image with --patches signed or daemon"
        )
    if policy is PatchPolicy.SIGNED:
        _require_signed(patch, grounds)
    _require_inside(patch, manifest, accepted)


def _require_signed(patch: MachinePatch, grounds: PatchGrounds) -> None:
    patch_set = grounds.patch_set
    if patch_set is None:
        raise _refused(
            f"the signed statement of {grounds.accepted.name!r} requires a signed set of patches, and there is none"
        )
    if patch_set.image_id != patch.image_id:
        raise _refused(f"the signed set {patch_set.name!r} is for the image {patch_set.image_id.hex()}")
    if patch_set.patch_ids.get(patch.machine_id) != patch.patch_id:
        raise _refused(f"the signed set {patch_set.name!r} has another patch, or none, for this machine")


def allowed_ranges(manifest: Manifest, accepted: AcceptedImage) -> list[tuple[int, int]]:
    """Return the byte ranges that patches of an accepted image may change, ascending, touching ones merged.

    An image that is accepted without a trusted signature has no statement that could limit them.

    Raises:
        PatchRefusedError: the statement names a partition that the image doesn't have, or nothing is allowed.
    """
    if accepted.verified is None:
        return [(0, manifest.raw_bytes)]
    named = dict(accepted.verified.statement.extensions).get(PATCH_PARTITIONS)
    if named == ALL_PARTITIONS:
        return [(0, manifest.raw_bytes)]
    numbers: set[int] = set()
    if named is None:
        seed = manifest.metadata.get("seed_partition")
        if not isinstance(seed, int):
            raise _refused(
                f"the image {accepted.name!r} has no seed partition, and its signed statement names no others: prepare "
                "the image with a seed partition, or sign it with --patch-partitions"
            )
        numbers = {seed}
    else:
        texts = named.split(",")
        if not all(text.isascii() and text.isdecimal() for text in texts):
            raise _refused(
                f"the signed statement has {PATCH_PARTITIONS} {named!r}: sign it with numbers or all"
            )
        numbers = {int(text) for text in texts}
    layout = layout_of(manifest.metadata)
    partitions = {} if layout is None else {part.number: part for part in layout.partitions}
    if missing := sorted(numbers.difference(partitions)):
        raise _refused(f"the image {accepted.name!r} has no partition {missing[0]}, which patches may change")
    merged: list[tuple[int, int]] = []
    for part in sorted((partitions[number] for number in numbers), key=lambda part: part.start_bytes):
        start, stop = part.start_bytes, part.start_bytes + part.size_bytes
        if merged and merged[-1][1] >= start:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _require_inside(patch: MachinePatch, manifest: Manifest, accepted: AcceptedImage) -> None:
    """Refuse a block that is outside the allowed ranges, or straddles their border: all of it is replaced."""
    ranges = allowed_ranges(manifest, accepted)
    for row, block in enumerate(patch.blocks.tolist()):
        start = block * patch.block_bytes
        stop = start + patch.raw_length(row)
        if any(low <= start and stop <= high for low, high in ranges):
            continue
        straddles = any(low < stop and start < high for low, high in ranges)
        where = "straddles the border of" if straddles else "is outside"
        fix = ": use partitions aligned to the image's blocks, or a smaller --block-size" if straddles else ""
        raise _refused(f"block {block} (byte {start}) {where} the partitions that patches may change{fix}")


def _refused(reason: str) -> PatchRefusedError:
    return PatchRefusedError(f"the machine patch is refused: {reason}; nothing was written")
