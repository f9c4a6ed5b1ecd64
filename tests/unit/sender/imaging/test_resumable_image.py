"""An image under construction whose process was killed: exactly the good blocks count, and the rest is made again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.control.capture_messages import BlockGeometry, BlockRows
from protocol.image.image_format import PAGE_BYTES, payload_offset_of
from protocol.image.manifest_format import build_manifest_start
from sender.imaging.block_check import BlockChecker
from sender.imaging.image_file import ImageFile
from sender.imaging.resumable_image import ResumableImage, rows_between
from tests.support.disks.disk_images import MadeImage, make_image

KINDS = "drzuudrddzzrduzdrz"
BLOCK_BYTES = 1 << 16


@pytest.fixture
def checker() -> Iterator[BlockChecker]:
    checker = BlockChecker()
    yield checker
    checker.close()


class Construction:
    """An image that is written in pieces."""

    def __init__(self, path: Path, checker: BlockChecker) -> None:
        self.made: MadeImage = make_image(KINDS, tail_bytes=1000, block_bytes=BLOCK_BYTES)
        manifest = self.made.manifest
        self.geometry = BlockGeometry(manifest.raw_bytes, BLOCK_BYTES)
        self.start, self.layout = build_manifest_start("made", manifest.raw_bytes, BLOCK_BYTES, {})
        self.rows = BlockRows(
            0,
            manifest.kind,
            manifest.stored_bytes,
            manifest.stored_hash.tobytes(),
            manifest.raw_hash.tobytes(),
        )
        self.path = path
        self.checker = checker

    @property
    def partial(self) -> Path:
        return self.path.with_name(f".{self.path.name}.partial")

    def open(self) -> ResumableImage:
        image = ResumableImage(self.path, self.start, self.layout, self.geometry)
        image.recover(lambda rows, payload: self.checker.good_count(rows, payload, self.geometry))
        return image

    def write(self, image: ResumableImage, stop: int) -> None:
        first = image.next_block
        rows = rows_between(self.rows, first, stop)
        image.append(
            rows, [self.made.stored[block] for block in range(first, stop) if self.made.stored[block]]
        )

    def payload_bytes(self, stop: int) -> int:
        return sum(len(one) for one in self.made.stored[:stop])


@pytest.fixture
def construction(tmp_path: Path, checker: BlockChecker) -> Construction:
    return Construction(tmp_path / "lab.dci", checker)


def test_an_image_in_pieces_has_the_bytes_of_one_in_a_single_run(
    construction: Construction, tmp_path: Path
) -> None:
    """A killed daemon must not show in the image, or the same disk would have two ids."""
    for stop in (1, 5, 6, 11, len(KINDS)):
        with construction.open() as image:
            construction.write(image, stop)
        assert construction.partial.exists()
    with construction.open() as image:
        assert image.next_block == len(KINDS)
        image.commit()
    assert not construction.partial.exists()
    assert (
        construction.path.read_bytes()
        == construction.made.write(tmp_path / "whole.dci", signer=None).read_bytes()
    )
    with ImageFile.open(construction.path) as opened:
        assert opened.manifest.image_id == construction.made.manifest.image_id


@pytest.mark.parametrize("seed", range(30))
def test_a_torn_file_continues_before_its_first_damage(
    construction: Construction, seed: int, tmp_path: Path
) -> None:
    """After a power cut any of the last writes may be missing: no damaged block may count as written."""
    pick = random.Random(seed)
    stop = pick.randrange(1, len(KINDS) + 1)
    with construction.open() as image:
        construction.write(image, stop)
    data = bytearray(construction.partial.read_bytes())
    damaged = pick.randrange(stop)
    layout = construction.layout
    places = {
        "kind": (layout.kind_offset + damaged, 1, 4),
        "stored hash": (layout.stored_hash_offset + 32 * damaged, 32, None),
        "raw hash": (layout.raw_hash_offset + 32 * damaged, 32, None),
    }
    offset, length, value = places[pick.choice(list(places))]
    data[PAGE_BYTES + offset : PAGE_BYTES + offset + length] = (
        bytes([value]) if value is not None else pick.randbytes(length)
    )
    construction.partial.write_bytes(data)
    with construction.open() as image:
        assert image.next_block == damaged
        assert image.payload_bytes == construction.payload_bytes(damaged)
        construction.write(image, len(KINDS))
        image.commit()
    assert (
        construction.path.read_bytes()
        == construction.made.write(tmp_path / "whole.dci", signer=None).read_bytes()
    )


@pytest.mark.parametrize("missing_bytes", [1, 70_000, 200_000])
def test_a_truncated_payload_continues_at_the_first_missing_block(
    construction: Construction, missing_bytes: int
) -> None:
    with construction.open() as image:
        construction.write(image, len(KINDS))
    size = construction.partial.stat().st_size - missing_bytes
    with construction.partial.open("r+b") as file:
        file.truncate(size)
    payload_bytes = size - payload_offset_of(construction.layout.manifest_bytes)
    ends = np.cumsum([len(one) for one in construction.made.stored])
    with construction.open() as image:
        expected = int(np.searchsorted(ends, payload_bytes, "right"))
        assert image.next_block == expected


def test_old_rows_behind_the_position_never_count(construction: Construction) -> None:
    """Rows of blocks without payload would pass every check, though the disk may have changed since."""
    with construction.open() as image:
        construction.write(image, len(KINDS))
    data = bytearray(construction.partial.read_bytes())
    data[PAGE_BYTES + construction.layout.stored_hash_offset] ^= 1  # block 0
    construction.partial.write_bytes(data)
    with construction.open() as image:
        assert image.next_block == 0
        construction.write(image, 2)
    with construction.open() as image:
        assert image.next_block == 2, "blocks 2 to 4 are zero and unused: their old rows were valid"


def test_the_file_of_another_disk_is_emptied(construction: Construction) -> None:
    with construction.open() as image:
        construction.write(image, 4)
    construction.start, construction.layout = build_manifest_start(
        "made", construction.geometry.raw_bytes, BLOCK_BYTES, {"logical_sector_bytes": 4096}
    )
    with construction.open() as image:
        assert image.next_block == 0


def test_a_discarded_image_leaves_no_file(construction: Construction) -> None:
    with construction.open() as image:
        construction.write(image, 4)
        image.discard()
    assert list(construction.path.parent.iterdir()) == []


def test_the_checker_counts_good_blocks_from_the_first_on(construction: Construction) -> None:
    payload = [bytes(one) for one in construction.made.stored if one]
    good = construction.checker.good_count
    assert good(construction.rows, payload, construction.geometry) == len(payload)
    for damaged in range(len(payload)):
        spoilt = [*payload]
        spoilt[damaged] = bytes(len(spoilt[damaged]))
        assert good(construction.rows, spoilt, construction.geometry) == damaged
    assert good(construction.rows, payload[:3], construction.geometry) == 3
