"""A patch of an image's seed partition: only the blocks that get other bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from protocol.constants import MIB
from protocol.disk.disk_layout import layout_of
from protocol.disk.partition_table import SECTOR_BYTES_CHOICES
from protocol.disk.seed_partition import SEED_PARTITION_BYTES
from protocol.errors import ConfigurationError
from protocol.image.block_codec import block_hash, zero_hash
from protocol.image.manifest import BlockKind, Manifest
from protocol.patch.machine_patch import MachinePatch, build_patch
from sender.patches.fat_seed import build_fat_seed
from sender.patches.machines_file import PatchMachine
from sender.patches.seed import Seed

assert SEED_PARTITION_BYTES == 4 * MIB  # a multiple of every block size


@dataclasses.dataclass(frozen=True, slots=True)
class SeedPlace:
    """The seed partition of an image.

    Attributes:
        manifest: the image's manifest.
        start_bytes: start of the partition, a multiple of the block size.
        sector_bytes: logical sector size of the disk.
    """

    manifest: Manifest
    start_bytes: int
    sector_bytes: int

    @classmethod
    def of(cls, manifest: Manifest) -> SeedPlace:
        """Return the seed partition of an image.

        Raises:
            ConfigurationError: the image has none.
        """
        layout, number = layout_of(manifest.metadata), manifest.metadata.get("seed_partition")
        parts = {} if layout is None else {part.number: part for part in layout.partitions}
        part = parts.get(number) if isinstance(number, int) else None
        if layout is None or part is None:
            raise ConfigurationError(
                f"the image {manifest.name!r} has no seed partition: add one with `diskcast images prepare`, or pack "
                "it with --seed-partition"
            )
        if part.start_bytes % manifest.block_bytes or part.size_bytes != SEED_PARTITION_BYTES:
            raise ConfigurationError(
                f"the seed partition of the image {manifest.name!r} isn't one that diskcast made: prepare the original "
                "image again"
            )
        sector_bytes = manifest.metadata.get("logical_sector_bytes", layout.sector_bytes)
        assert isinstance(sector_bytes, int)  # checked with the manifest
        sector_bytes = max(sector_bytes, layout.sector_bytes)
        if sector_bytes not in SECTOR_BYTES_CHOICES:
            raise ConfigurationError(
                f"the disk of the image {manifest.name!r} has sectors of {sector_bytes} bytes, for which no seed can "
                "be made: pack a disk with sectors of 512 or 4096 bytes"
            )
        return cls(manifest, part.start_bytes, sector_bytes)

    def changed_blocks(self, content: bytes) -> dict[int, bytes]:
        """Return the blocks that change if the partition starts with ``content`` and has zeros behind it."""
        manifest = self.manifest
        first = self.start_bytes // manifest.block_bytes
        changed = {}
        for index in range(SEED_PARTITION_BYTES // manifest.block_bytes):
            block = first + index
            wanted = content[index * manifest.block_bytes : (index + 1) * manifest.block_bytes]
            digest = (
                block_hash(wanted.ljust(manifest.block_bytes, b"\0"))
                if wanted
                else zero_hash(manifest.block_bytes)
            )
            # The content of an unused block isn't known, and its hash is zero.
            if manifest.kind[block] == BlockKind.UNUSED or manifest.raw_hash[block].tobytes() != digest:
                changed[block] = wanted.ljust(manifest.block_bytes, b"\0")
        return changed


def build_machine_patch(place: SeedPlace, machine: PatchMachine, seed: Seed) -> MachinePatch:
    """Return the patch that gives a machine its seed; equal seeds give equal patches.

    Raises:
        ConfigurationError: the seed doesn't fit into a patch.
    """
    contents = place.changed_blocks(build_fat_seed(seed.files, place.sector_bytes))
    return patch_of_blocks(place.manifest, machine, contents)


def patch_of_blocks(manifest: Manifest, machine: PatchMachine, contents: Mapping[int, bytes]) -> MachinePatch:
    """Return the patch that gives blocks of a machine's disk other contents.

    Raises:
        ConfigurationError: they don't fit into a patch.
    """
    return build_patch(
        manifest.image_id,
        machine.machine_id,
        raw_bytes=manifest.raw_bytes,
        block_bytes=manifest.block_bytes,
        contents=contents,
    )
