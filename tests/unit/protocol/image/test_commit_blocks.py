"""Blocks that are written last: a disk that looks bootable too early would be trusted and booted."""

from __future__ import annotations

import numpy as np

from protocol.constants import KIB, MIB
from protocol.disk.disk_layout import layout_metadata
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.image.commit_blocks import COMMIT_BYTES_MAX, commit_blocks
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import block_count_of, build_manifest


def manifest_of(raw_bytes: int, block_bytes: int, layout: DiskLayout | None) -> Manifest:
    n = block_count_of(raw_bytes, block_bytes)
    empty = np.zeros((n, 32), np.uint8)
    metadata = {} if layout is None else {"layout": layout_metadata(layout)}
    kind = np.full(n, BlockKind.UNUSED, np.uint8)
    return Manifest.parse_untrusted(
        build_manifest("x", raw_bytes, block_bytes, kind, np.zeros(n, np.uint32), empty, empty, metadata)
    )


def test_both_ends_boot_records_and_partition_starts_are_written_last() -> None:
    layout = DiskLayout(
        TableKind.MBR,
        512,
        (
            Partition(1, 2 * MIB, MIB, "0x83"),
            Partition(2, 4 * MIB, 4 * MIB, "0x05"),
            Partition(5, 5 * MIB, 1, "0x07"),
        ),
        (4 * MIB, 6 * MIB),
    )
    manifest = manifest_of(10 * MIB + 300, 256 * KIB, layout)
    assert commit_blocks(manifest).tolist() == [0, 1, 2, 3, 8, 16, 20, 24, 36, 37, 38, 39, 40]


def test_an_image_smaller_than_both_ends_is_written_last_as_a_whole() -> None:
    assert commit_blocks(manifest_of(1, 64 * KIB, None)).tolist() == [0]
    assert commit_blocks(manifest_of(MIB + 1, 64 * KIB, None)).tolist() == list(range(17))


def test_commit_blocks_are_bounded_and_include_both_ends() -> None:
    parts = tuple(Partition(i + 1, (i + 1) * 5 * MIB, MIB, "x") for i in range(100))
    manifest = manifest_of(600 * MIB, 4 * MIB, DiskLayout(TableKind.GPT, 512, parts))
    blocks = commit_blocks(manifest)
    assert blocks.size * 4 * MIB == COMMIT_BYTES_MAX
    assert {0, 149} <= set(blocks.tolist())
    assert (np.diff(blocks) > 0).all()


def test_partitions_beyond_the_image_are_left_alone() -> None:
    layout = DiskLayout(TableKind.GPT, 512, (Partition(1, 2**40, MIB, "x"),))
    assert commit_blocks(manifest_of(64 * KIB, 64 * KIB, layout)).tolist() == [0]
