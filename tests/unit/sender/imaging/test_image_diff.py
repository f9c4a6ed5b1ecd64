"""The difference of two images, against a comparison of their raw disks."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.disk.disk_layout import layout_metadata
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from sender.imaging.contents import image_diff
from sender.imaging.contents.image_diff import diff_images
from tests.support.disks.disk_images import BLOCK_BYTES, MadeImage, make_image


def layout(*partitions: tuple[int, int]) -> dict[str, object]:
    """Return metadata with partitions of the given first block and count of blocks."""
    parts = tuple(
        Partition(number, first * BLOCK_BYTES, count * BLOCK_BYTES, "83", "", "ext4")
        for number, (first, count) in enumerate(partitions, 1)
    )
    return {"layout": layout_metadata(DiskLayout(TableKind.MBR, 512, parts, (), ""))}


def expected(older: MadeImage, newer: MadeImage) -> tuple[int, int]:
    """Return changed blocks and stored bytes to send, from the raw disks."""
    changed = [
        block
        for block in range(newer.manifest.block_count)
        if newer.manifest.kind[block] != 3
        and (
            block >= older.manifest.block_count
            or older.manifest.kind[block] == 3
            or older.raw[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            != newer.raw[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        )
    ]
    return len(changed), sum(len(newer.stored[block]) for block in changed)


@pytest.mark.parametrize("step", [1, 3, 1 << 17])
@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (make_image("drzu"), make_image("drzu")),
        (make_image("ddrzu" * 4, seed=1), make_image("ddrzu" * 4, seed=2)),
        (make_image("uuzzdd"), make_image("dzudzu")),
        (make_image("dd"), make_image("ddrr", tail_bytes=4096)),
        (make_image("ddrr"), make_image("dd")),
    ],
)
def test_blocks_and_bytes_are_those_of_the_raw_disks(
    monkeypatch: pytest.MonkeyPatch, older: MadeImage, newer: MadeImage, step: int
) -> None:
    monkeypatch.setattr(image_diff, "_ROWS_PER_STEP", step)
    found = diff_images(older.manifest, newer.manifest)
    assert (found.whole.changed_count, found.whole.sent_bytes) == expected(older, newer)
    assert found.whole.block_count == newer.manifest.block_count
    assert found.whole.stored_bytes == newer.manifest.payload_bytes
    assert found.outside == found.whole
    assert found.identical == (older is newer or older.raw == newer.raw)


def test_each_partition_has_its_own_figures() -> None:
    older = make_image("rrrrrrrr", metadata=layout((1, 3), (5, 2)))
    blocks = {5: np.random.default_rng(9).bytes(BLOCK_BYTES)}
    newer = make_image("rrrrrrrr", metadata=layout((1, 3), (5, 3)), frames=blocks)
    newer = make_image(
        "rrrrrrrr",
        metadata=layout((1, 3), (5, 3)),
        frames=blocks,
        raw_hashes={5: newer.manifest.stored_hash[5].tobytes()},
    )
    found = diff_images(older.manifest, newer.manifest)
    first, second = found.partitions
    assert (first.blocks.changed_count, first.moved) == (0, False)
    assert (second.blocks.changed_count, second.moved) == (1, True)
    assert (first.blocks.block_count, second.blocks.block_count, found.outside.block_count) == (3, 3, 2)
    assert found.layout_changed
    assert found.whole.sent_bytes == BLOCK_BYTES


def test_other_block_sizes_are_compared_by_nothing() -> None:
    found = diff_images(make_image("dd").manifest, make_image("d", block_bytes=2 * BLOCK_BYTES).manifest)
    assert not found.comparable
    assert found.whole.sent_bytes == found.whole.stored_bytes


def test_freed_blocks_are_counted_and_never_sent() -> None:
    newer = make_image("uud")
    found = diff_images(make_image("rrd").manifest, newer.manifest)
    assert (found.whole.freed_count, found.whole.changed_count) == (2, 1)
    assert found.whole.sent_bytes == newer.manifest.payload_bytes
