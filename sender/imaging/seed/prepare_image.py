"""Add a seed partition to an image: a new image with the same blocks and another partition table.

The stored bytes of all other blocks are copied as they are, each checked against its hash, so that preparing an image
costs no compression and never gives damaged data a new id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import HASH_BYTES, MIB
from protocol.disk.disk_layout import layout_metadata
from protocol.disk.partition_table import parse_layout_untrusted
from protocol.disk.seed_partition import SeedPartitionPlan, plan_seed_partition
from protocol.errors import ConfigurationError
from protocol.image.block_codec import LEVEL_DEFAULT, BlockEncoder, block_hash, zero_hash
from protocol.image.image_format import ImageHeader
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import build_manifest_start
from protocol.packing.source_hash import source_sha256_of
from sender.imaging.image_file import ImageFile
from sender.imaging.image_writer import ImageWriter
from sender.imaging.seed.overlay_source import apply_writes
from sender.imaging.verified_blocks import VerifiedBlocks

SEED_PARTITION_KEY: Final = "seed_partition"

_COPY_BYTES: Final = 16 * MIB
"""Stored bytes per read; memory of a copy."""
_ROWS_PER_COPY_MAX: Final = 1 << 16
"""Manifest rows that are copied together: 4.5 MB."""


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
    with ImageWriter(output_path, start, rows) as writer:
        if writer.path == image.path.resolve():
            raise ConfigurationError(f"{image.path}: choose another output than the image itself")
        encoder = BlockEncoder(LEVEL_DEFAULT, manifest.block_bytes)
        next_block = 0
        for block in changed:
            _copy_blocks(image, writer, next_block, block, on_progress)
            raw = read(block * manifest.block_bytes, manifest.block_bytes)
            _write_block(writer, encoder, block, raw)
            next_block = block + 1
        _copy_blocks(image, writer, next_block, manifest.block_count, on_progress)
        image_id = writer.commit(sign=sign)
    return PrepareResult(writer.path, image_id, plan, len(changed))


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


def _write_block(writer: ImageWriter, encoder: BlockEncoder, block: int, raw: bytes) -> None:
    if not any(raw):
        kind, stored, stored_hash, raw_hash = BlockKind.ZERO, b"", bytes(HASH_BYTES), zero_hash(len(raw))
    else:
        kind, encoded = encoder.encode(memoryview(raw))
        stored, stored_hash, raw_hash = bytes(encoded), block_hash(encoded), block_hash(raw)
    writer.append_payload([stored])
    writer.write_rows(
        block, np.array([kind], np.uint8), np.array([len(stored)], np.uint32), stored_hash, raw_hash
    )


def _copy_blocks(
    image: ImageFile, writer: ImageWriter, first: int, stop: int, on_progress: Callable[[int, int], None]
) -> None:
    """Copy the rows and stored bytes of unchanged blocks."""
    manifest = image.manifest
    buffer = memoryview(bytearray(max(_COPY_BYTES, manifest.block_bytes)))
    for start, end in _pieces(manifest.stored_bytes, first, min(stop, manifest.block_count)):
        lengths = manifest.stored_bytes[start:end]
        rows = np.arange(start, end)
        stored_hash = manifest.stored_hash[rows]
        offset = manifest.offset_of(start)
        payload = buffer[: int(lengths.sum(dtype=np.int64))]
        image.read_payload(offset, payload)
        position = 0
        for index in np.flatnonzero(lengths).tolist():
            length = int(lengths[index])
            if block_hash(payload[position : position + length]) != stored_hash[index].tobytes():
                raise image.wrong_block(start + index)
            position += length
        writer.append_payload([payload])
        writer.write_rows(
            start, manifest.kind[rows], lengths, stored_hash.tobytes(), manifest.raw_hash[rows].tobytes()
        )
        on_progress(offset + len(payload), image.header.payload_bytes)


def _pieces(stored_bytes: NDArray[np.uint32], first: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges of blocks whose stored bytes fit into the buffer."""
    while first < stop:
        window = stored_bytes[first : min(stop, first + _ROWS_PER_COPY_MAX)]
        fitting = int(np.searchsorted(np.cumsum(window, dtype=np.int64), _COPY_BYTES, side="right"))
        end = first + max(1, fitting)
        yield first, end
        first = end
