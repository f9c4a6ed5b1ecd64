"""Add a seed partition to an image: a new image with the same blocks and another partition table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Final

from protocol.disk.disk_layout import layout_metadata
from protocol.disk.partition_table import parse_layout_untrusted
from protocol.disk.seed_partition import SeedPartitionPlan, plan_seed_partition
from protocol.errors import ConfigurationError
from protocol.image.image_format import ImageHeader
from protocol.image.manifest import Manifest
from protocol.image.manifest_format import build_manifest_start
from protocol.packing.source_hash import source_sha256_of
from sender.imaging.editing.image_rewriter import rewrite_image
from sender.imaging.image_file import ImageFile
from sender.imaging.seed.overlay_source import apply_writes
from sender.imaging.verified_blocks import VerifiedBlocks

SEED_PARTITION_KEY: Final = "seed_partition"


@dataclasses.dataclass(frozen=True, slots=True)
class PrepareResult:
    """A prepared image.

    Attributes:
        path: the image.
        image_id: its id.
        plan: the place of the seed partition.
        changed_blocks: number of blocks that differ from the original.
    """

    path: Path
    image_id: bytes
    plan: SeedPartitionPlan
    changed_blocks: int


def prepare_image(
    image: ImageFile,
    output_path: Path,
    sign: Callable[[ImageHeader], ImageHeader] = lambda header: header,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> PrepareResult:
    """Write ``image`` with a seed partition to ``output_path``; the same image always gives the same file.

    Raises:
        ConfigurationError: the image has a seed partition, is evidence, or its disk has no room for a partition.
        ImageDamagedError: a block doesn't match its hash.
        StorageError: a disk is full or failed.
    """
    manifest = image.manifest
    _require_preparable(image)
    blocks = VerifiedBlocks(image)
    layout = parse_layout_untrusted(
        blocks.read_range, manifest.raw_bytes, sector_bytes=_sector_bytes(manifest)
    )
    try:
        plan = plan_seed_partition(blocks.read_range, manifest.raw_bytes, layout, manifest.block_bytes)
    except ConfigurationError as error:
        raise ConfigurationError(f"{image.path}: {error}") from error

    def read(offset: int, length: int) -> bytes:
        data = bytearray(max(0, min(length, plan.disk_bytes - offset)))
        old = blocks.read_range(offset, len(data)) if offset < manifest.raw_bytes else b""
        data[: len(old)] = old
        apply_writes(plan.writes, offset, memoryview(data))
        return bytes(data)

    metadata = dict(manifest.metadata)
    metadata["layout"] = layout_metadata(
        parse_layout_untrusted(read, plan.disk_bytes, sector_bytes=_sector_bytes(manifest))
    )
    metadata[SEED_PARTITION_KEY] = plan.number
    start, rows = build_manifest_start(manifest.name, plan.disk_bytes, manifest.block_bytes, metadata)
    changed = _changed_blocks(plan, manifest, rows.block_count)
    blocks_read = ((block, read(block * manifest.block_bytes, manifest.block_bytes)) for block in changed)
    path, image_id = rewrite_image(image, output_path, start, rows, blocks_read, sign, on_progress)
    return PrepareResult(path, image_id, plan, len(changed))


def _require_preparable(image: ImageFile) -> None:
    metadata = image.manifest.metadata
    if SEED_PARTITION_KEY in metadata:
        raise ConfigurationError(
            f"{image.path}: the image already has a seed partition, number {metadata[SEED_PARTITION_KEY]}: use it as "
            "it is"
        )
    if source_sha256_of(image.manifest) is not None:
        raise ConfigurationError(
            f"{image.path}: the image is evidence (--every-byte), and a seed partition would change it: pack the disk "
            "again without --every-byte"
        )


def _sector_bytes(manifest: Manifest) -> int:
    value = manifest.metadata.get("logical_sector_bytes", 512)
    assert isinstance(value, int)  # checked with the manifest
    return value


def _changed_blocks(plan: SeedPartitionPlan, manifest: Manifest, block_count: int) -> list[int]:
    """Return the blocks that get other bytes or another length, ascending."""
    block_bytes = manifest.block_bytes
    blocks = set(range(manifest.block_count, block_count))
    if plan.disk_bytes != manifest.raw_bytes and manifest.raw_bytes % block_bytes:
        blocks.add(manifest.block_count - 1)
    for offset, data in plan.writes:
        blocks.update(range(offset // block_bytes, -(-(offset + len(data)) // block_bytes)))
    return sorted(blocks)
