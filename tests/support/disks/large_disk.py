"""A disk large enough for a kill in the middle of a run, and the blocks of its image that a target misses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

import numpy as np

from protocol.constants import MIB
from protocol.image.manifest import BlockKind
from receiver.restore.image_source import open_image
from tests.support.disks.bootable_disk import SECTOR_BYTES
from tests.support.network.lab import run
from tests.support.network.loopback_cast import pack

_PIECE_BYTES: Final = 8 * MIB


def make_large_disk(path: Path, size_bytes: int, seed: int) -> None:
    """Return a partition table followed by stretches of random bytes, of text and of zeros."""
    rng = np.random.default_rng(seed)
    text = (b"line %d of the text\n" % seed) * (_PIECE_BYTES // 16)
    with path.open("wb") as file:
        for number in range(size_bytes // _PIECE_BYTES):
            if number % 5 == 3:
                file.write(text[:_PIECE_BYTES])
            elif number % 7 == 5:
                file.seek(_PIECE_BYTES, 1)
            else:
                file.write(rng.bytes(_PIECE_BYTES))
        file.truncate(size_bytes)
    table = f"label: gpt\nstart=2048, size={size_bytes // SECTOR_BYTES - 4096}, type=linux\n"
    run("sfdisk", "--quiet", "--no-reread", "--wipe", "never", path, text=table)


@dataclasses.dataclass(frozen=True, slots=True)
class LargeImage:
    """The packed disk."""

    raw_path: Path
    path: Path
    image_id: bytes
    block_bytes: int
    kind: np.ndarray
    stored_bytes: np.ndarray

    def wrong_blocks(self, target: Path) -> np.ndarray:
        """Return the blocks of the file ``target`` that differ from the image."""
        expected = np.memmap(self.raw_path, np.uint8, "r")
        found = np.memmap(target, np.uint8, "r", shape=expected.shape)
        starts = range(0, expected.size, self.block_bytes)
        equal = [
            np.array_equal(
                expected[start : start + self.block_bytes], found[start : start + self.block_bytes]
            )
            for start in starts
        ]
        return np.flatnonzero(~np.array(equal) & (self.kind != BlockKind.UNUSED))

    def missing_bytes(self, target: Path) -> int:
        """Return the stored bytes of the blocks that ``target`` misses, the least that must be fetched."""
        return int(self.stored_bytes[self.wrong_blocks(target)].sum())


def make_large_image(folder: Path, size_bytes: int, seed: int) -> LargeImage:
    """Create the disk and pack it in ``folder``."""
    make_large_disk(folder / "disk.raw", size_bytes, seed)
    path = pack(folder / "disk.raw", folder / "disk.dci")
    with open_image(path) as image:
        manifest = image.manifest
        stored_bytes = np.array(manifest.stored_bytes, np.int64)
        kind = np.array(manifest.kind)
        return LargeImage(
            folder / "disk.raw", path, manifest.image_id, manifest.block_bytes, kind, stored_bytes
        )


def make_old_disk(path: Path, image: LargeImage, right_share: float, seed: int) -> None:
    """Create a target of the image's size with random blocks of the image, garbage between, and a foreign table."""
    rng = np.random.default_rng(seed)
    size_bytes = image.raw_path.stat().st_size
    with image.raw_path.open("rb") as raw, path.open("wb") as old:
        for start in range(0, size_bytes, image.block_bytes):
            piece = raw.read(image.block_bytes)
            right = start and rng.random() < right_share
            old.write(piece if right else rng.bytes(len(piece)))
    table = f"label: dos\nstart=2048, size={size_bytes // SECTOR_BYTES - 4096}, type=7\n"
    run("sfdisk", "--quiet", "--no-reread", "--wipe", "never", path, text=table)
