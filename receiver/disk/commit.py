"""Commit last: what makes a disk bootable is written when all else is verified; until then a mark stands in its place.

::

    first change of the target     everything else          all verified
    ──────────────────────────     ───────────────          ─────────────────────────────────────────────────
    mark in the first sector,      written, read back       held blocks but the first      ─► flush ─► read back
    both edges wiped, flushed                               first block, still with mark   ─► flush
                                                            its first page, without it     ─► flush ─► read back

A power cut leaves the mark, or the whole image: what the last write changes is one sector, which holds the partition
table or boot sector, and a disk writes a sector as a whole. Pages are written because some disks take nothing less.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import MIB
from protocol.errors import StorageError, VerificationError
from protocol.image.commit_blocks import commit_blocks
from protocol.image.incomplete_marker import Marker, build_marker
from protocol.image.manifest import BlockKind, Manifest
from receiver.disk.read_back import ALIGNMENT_BYTES
from receiver.disk.target import Target
from receiver.disk.verifier import Verifier
from receiver.disk.writer import DiskWriter

EDGE_BYTES: Final = MIB
"""What is wiped at both ends: partition tables, boot loaders behind them, backup tables, RAID superblocks."""

_FIRST_BYTES: Final = 4096
"""Written last of all: the largest sector, and what any disk takes past the page cache."""

READ_BACK_FAILURES_MAX: Final = 2
"""Times that a block may read back wrong: once may be a bit that fell over, twice is a disk that can't be trusted."""


class CommitLast:
    """The blocks of one image that are held back until all others are verified. Thread-safe.

    Memory: their raw bytes, at most :data:`protocol.image.commit_blocks.COMMIT_BYTES_MAX`.

    Attributes:
        blocks: which these are, ascending: stored ones, and the first whatever it is, since the mark is in it.
        rewritten_count: blocks that had to be written again because they read back wrong.
    """

    def __init__(self, target: Target, manifest: Manifest, writer: DiskWriter, verifier: Verifier) -> None:
        self.rewritten_count = 0
        self._target = target
        self._manifest = manifest
        self._writer = writer
        self._verifier = verifier
        self._lock = threading.Lock()
        self._begin_lock = threading.Lock()
        self._begun = False
        members = commit_blocks(manifest)
        # Zeros boot nothing, and what is unused needn't be right; only the mark itself has to go.
        self.blocks: NDArray[np.int64] = members[manifest.are_stored(members) | (members == 0)]
        self._members = frozenset(self.blocks.tolist())
        self._held: dict[int, memoryview] = {}
        self._changed: set[int] = set()
        if manifest.kind[0] > BlockKind.RAW:
            self._held[0] = memoryview(bytes(manifest.raw_length(0)))
            if manifest.kind[0] == BlockKind.ZERO:
                self._changed.add(0)

    def __contains__(self, block: int) -> bool:
        """Whether ``block`` is one of them."""
        return block in self._members

    @property
    def due(self) -> bool:
        """Whether there is something to commit: the target carries the mark, or a held block isn't on it."""
        return self._begun or bool(self._changed)

    def keep_matching(self) -> NDArray[np.int64]:
        """Read the blocks from the target and hold those that are right, before the mark overwrites some of them.

        Returns:
            Which are right, ascending; only stored ones.

        Raises:
            StorageError: the disk couldn't be read.
        """
        right = np.setdiff1d(self.blocks, self._verifier.missing_blocks(self.blocks), assume_unique=True)
        right_and_stored = right[self._manifest.are_stored(right)]
        for block in right_and_stored.tolist():
            if not self._is_wiped(block):
                continue
            raw = memoryview(bytearray(self._manifest.raw_length(block)))
            self._verifier.read_block(block, raw)
            self._held[block] = raw
        self._changed.difference_update(right.tolist())
        return right_and_stored

    def hold(self, block: int, raw: memoryview) -> None:
        """Hold a block that was received; ``raw`` is kept, not copied."""
        assert block in self._members
        with self._lock:
            self._held[block] = raw
            self._changed.add(block)

    def begin(self) -> None:
        """Mark the target before its first change; does nothing the second time.

        Raises:
            StorageError: final, the target is poisoned.
        """
        with self._begin_lock:
            if self._begun:
                return
            raw_bytes, size_bytes = self._manifest.raw_bytes, self._target.size_bytes
            self._lay_mark()
            self._writer.zero_range(len(self._mark()), min(EDGE_BYTES, raw_bytes))
            self._writer.zero_range(max(_FIRST_BYTES, raw_bytes - EDGE_BYTES), raw_bytes)
            if self._target.is_device:
                # The last image's backup GPT, or the superblock of an array that this disk was part of.
                self._writer.zero_range(max(raw_bytes, size_bytes - EDGE_BYTES), size_bytes)
            else:
                self._target.cut_off()
            self._target.sync()
            self._begun = True

    def _lay_mark(self) -> None:
        """On the disk before anything else is touched: of the page that is written only the first sector changes."""
        length, mark = min(_FIRST_BYTES, self._manifest.raw_bytes), self._mark()
        with self._writer.borrow_buffer() as buffer:
            self._target.read_back.read_into(buffer[:ALIGNMENT_BYTES], 0)
            buffer[: len(mark)] = mark
            self._writer.write(0, buffer[:length])
        self._target.sync()

    def _mark(self) -> bytes:
        """As much of it as the image has room for."""
        manifest = self._manifest
        mark = build_marker(Marker(manifest.image_id, manifest.name, manifest.raw_bytes))
        return mark[: manifest.raw_bytes]

    def commit(self, require_all_right: Callable[[], None]) -> None:
        """Write the held blocks, the first page last, and read all of them back; every other block is verified.

        Args:
            require_all_right: reads all blocks once more and raises ``VerificationError`` if one isn't right; called
                if one of the held ones read back wrong at first, since its bytes may have landed on another.

        Raises:
            VerificationError: a block read back wrong twice, or isn't right any more; the mark is there again.
            StorageError: final, the target is poisoned; the mark is there again if the disk still takes it.
        """
        self.begin()
        try:
            rest = [
                block for block in self.blocks.tolist() if block in self._changed or self._is_wiped(block)
            ]
            self._write_until_right(np.array([block for block in rest if block], np.int64), self._write_whole)
            self._write_until_right(np.zeros(1, np.int64), self._write_first)
            if self.rewritten_count:
                require_all_right()
        except StorageError:
            self._mark_again()
            raise
        self._begun = False
        self._changed.clear()

    def _is_wiped(self, block: int) -> bool:
        start = block * self._manifest.block_bytes
        stop = start + self._manifest.raw_length(block)
        return start < EDGE_BYTES or stop > self._manifest.raw_bytes - EDGE_BYTES

    def _write_until_right(self, blocks: NDArray[np.int64], write: Callable[[int], None]) -> None:
        for _ in range(READ_BACK_FAILURES_MAX):
            for block in blocks.tolist():
                write(block)
            self._target.sync()
            wrong = self._verifier.verify_blocks(blocks)
            if wrong.size == 0:
                return
            self.rewritten_count += int(wrong.size)
            blocks = wrong
        raise read_back_error(self._target.path, self._manifest, int(blocks[0]))

    def _write_whole(self, block: int) -> None:
        self._write_held(block, 0, self._manifest.raw_length(block))

    def _write_first(self, block: int) -> None:
        length, mark = self._manifest.raw_length(block), self._mark()
        with self._writer.borrow_buffer() as buffer:
            buffer[:length] = self._held[block]
            buffer[: len(mark)] = mark
            self._writer.write(0, buffer[:length])
        self._target.sync()
        self._write_held(block, 0, min(_FIRST_BYTES, length))

    def _write_held(self, block: int, start: int, stop: int) -> None:
        if start >= stop:
            return
        with self._writer.borrow_buffer() as buffer:
            buffer[: stop - start] = self._held[block][start:stop]
            self._writer.write(block * self._manifest.block_bytes + start, buffer[: stop - start])

    def _mark_again(self) -> None:
        """By the shortest way, since the target may be poisoned: it promises nothing, and nothing depends on it."""
        with contextlib.suppress(OSError):
            os.pwrite(self._target.fd, self._mark(), 0)
            os.fdatasync(self._target.fd)


def read_back_error(path: Path, manifest: Manifest, block: int) -> VerificationError:
    """The error for a block that a disk returned wrong too often."""
    return VerificationError(
        f"{path}: block {block} (byte {block * manifest.block_bytes}) read back {READ_BACK_FAILURES_MAX} times as "
        "something else than was written; the target is incomplete: replace the disk, or check its cable and this "
        "machine's memory"
    )
