"""Helpers for tests of the disk writer: random writes with their expected content, and images written in runs."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import numpy as np

from protocol.image.block_codec import BlockDecoder
from protocol.image.manifest import BlockKind
from receiver.disk.writer import DiskWriter
from tests.support.disks.disk_images import MadeImage


@dataclasses.dataclass(frozen=True)
class Piece:
    """One write: its offset, its length, and the distance of its memory from a page boundary."""

    offset_bytes: int
    length: int
    skew_bytes: int


def random_pieces(rng: random.Random, size_bytes: int, count: int) -> Iterator[Piece]:
    """Return writes all over a target, of whole pages and odd lengths, from aligned and unaligned memory."""
    for _ in range(count):
        unit = rng.choice([1, 512, 4096, 65536])
        offset_bytes = rng.randrange(size_bytes // unit) * unit
        length = min(rng.randrange(1, 1 + (1 << 18) // unit) * unit, size_bytes - offset_bytes)
        yield Piece(offset_bytes, length, rng.choice([0, 0, offset_bytes % 4096, 1, 512]))


def write_pieces(writer: DiskWriter, content: bytearray, pieces: Iterator[Piece], rng: random.Random) -> None:
    """Write random bytes, sometimes zeros, and update ``content``, the expected content of the target."""
    for piece in pieces:
        start, stop = piece.offset_bytes, piece.offset_bytes + piece.length
        if rng.randrange(4) == 0:
            writer.zero_range(start, stop)
            content[start:stop] = bytes(piece.length)
            continue
        with writer.borrow_buffer() as buffer:
            data = buffer[piece.skew_bytes : piece.skew_bytes + piece.length]
            data[:] = rng.randbytes(piece.length)
            content[start:stop] = data
            writer.write(start, data)


def write_runs(writer: DiskWriter, made: MadeImage, *, seed: int = 1, blocks_max: int = 5) -> None:
    """Write an image's stored blocks: runs of a few, in a random order."""
    manifest, decoder, rng = made.manifest, BlockDecoder(), random.Random(seed)
    waiting = np.flatnonzero(manifest.stored_mask).tolist()
    runs: list[list[int]] = []
    while waiting:
        run = [waiting.pop(0)]
        while waiting and waiting[0] == run[-1] + 1 and len(run) < rng.randint(1, blocks_max):
            run.append(waiting.pop(0))
        runs.append(run)
    rng.shuffle(runs)
    for run in runs:
        with writer.borrow_buffer() as buffer:
            end = 0
            for block in run:
                into = buffer[end : end + manifest.raw_length(block)]
                decoder.decode_into_untrusted(BlockKind(int(manifest.kind[block])), made.stored[block], into)
                end += len(into)
            writer.write(run[0] * manifest.block_bytes, buffer[:end])
