"""Commit last: the blocks that make a disk bootable are written after all others are verified; until then it is marked.

::

    first change of the target     all other blocks         all verified
    ──────────────────────────     ────────────────         ──────────────────────────────────────────────────
    marker in the first sector,    written, read back       held blocks except the first     ─► flush ─► read back
    both edges wiped, flushed                               first block, still with marker   ─► flush
                                                            its first page, without marker   ─► flush ─► read back

A power cut leaves either the marker or the whole image: the last write changes one sector, which holds the partition
table or boot sector, and a disk writes a sector as a whole. Whole pages are written because some disks accept nothing
smaller.
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
"""Bytes wiped at both ends: partition tables, boot loaders behind them, backup tables, RAID superblocks."""

_FIRST_BYTES: Final = 4096
"""Bytes of the very last write: the largest sector size, and a size that every disk accepts past the page cache."""

READ_BACK_FAILURES_MAX: Final = 2
"""Wrong read-backs of a block before it fails: once may be a flipped bit, twice is a disk that can't be trusted."""


class CommitLast:
    """The blocks of one image that are held back until all others are verified. Thread-safe.

    Memory: their raw bytes, at most :data:`protocol.image.commit_blocks.COMMIT_BYTES_MAX`.

    Attributes:
        blocks: their numbers, ascending: stored blocks, and always block 0, which contains the marker.
        rewritten_count: blocks that read back wrong and were written again.
    """

    def __init__(self, target: Target, manifest: Manifest, writer: DiskWriter, verifier: Verifier) -> None:
        self.rewritten_count = 0
        self._target = target
        self._manifest = manifest
        self._writer = writer
        self._verifier = verifier
        self._lock = threading.Lock()
        self._start_lock = threading.Lock()
        self._started = False
        members = commit_blocks(manifest)
        # Zero blocks boot nothing and unused blocks don't have to be right; only the marker itself must be replaced.
        self.blocks: NDArray[np.int64] = members[manifest.are_stored(members) | (members == 0)]
        self._members = frozenset(self.blocks.tolist())
        self._held: dict[int, memoryview] = {}
        self._changed: set[int] = set()
        if manifest.kind[0] > BlockKind.RAW:
            self._held[0] = memoryview(bytes(manifest.raw_length(0)))
            if manifest.kind[0] == BlockKind.ZERO:
                self._changed.add(0)

    def __contains__(self, block: int) -> bool:
        """Return whether ``block`` is held back."""
        return block in self._members

    @property
    def due(self) -> bool:
        """Return whether a commit is needed: the target has the marker, or a held block isn't on it."""
        return self._started or bool(self._changed)

    def keep_matching(self) -> NDArray[np.int64]:
        """Read the blocks from the target and hold those that are right, before the marker overwrites some of them.

        Returns:
            The stored blocks that are right, ascending.

        Raises:
            StorageError: the disk can't be read.
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
        """Hold a received block; ``raw`` is kept, not copied."""
        assert block in self._members
        with self._lock:
            self._held[block] = raw
            self._changed.add(block)

    def start(self) -> None:
        """Mark the target before its first change; do nothing if it is marked already.

        Raises:
            StorageError: final, the target is poisoned.
        """
        with self._start_lock:
            if self._started:
                return
            raw_bytes, size_bytes = self._manifest.raw_bytes, self._target.size_bytes
            self._write_marker()
            self._writer.zero_range(len(self._marker()), min(EDGE_BYTES, raw_bytes))
            self._writer.zero_range(max(_FIRST_BYTES, raw_bytes - EDGE_BYTES), raw_bytes)
            if self._target.is_device:
                # The previous image's backup GPT, or the superblock of an array that this disk was part of.
                self._writer.zero_range(max(raw_bytes, size_bytes - EDGE_BYTES), size_bytes)
            else:
                self._target.cut_off()
            self._target.sync()
            self._started = True

    def _write_marker(self) -> None:
        """Write and flush the marker before anything else; only the first sector of the written page changes."""
        length, marker = min(_FIRST_BYTES, self._manifest.raw_bytes), self._marker()
        with self._writer.borrow_buffer() as buffer:
            self._target.read_back.read_into(buffer[:ALIGNMENT_BYTES], 0)
            buffer[: len(marker)] = marker
            self._writer.write(0, buffer[:length])
        self._target.sync()

    def _marker(self) -> bytes:
        """Return the marker, cut to the length of the image."""
        manifest = self._manifest
        marker = build_marker(Marker(manifest.image_id, manifest.name, manifest.raw_bytes))
        return marker[: manifest.raw_bytes]

    def commit(self, require_all_right: Callable[[], None]) -> None:
        """Write the held blocks, the first page last, and read them back, after all other blocks are verified.

        Args:
            require_all_right: reads all blocks once more and raises ``VerificationError`` if one isn't right; called
                if a held block read back wrong at first, since its bytes may have overwritten another block.

        Raises:
            VerificationError: a block read back wrong twice, or isn't right any more; the marker is restored.
            StorageError: final, the target is poisoned; the marker is restored if the disk still accepts it.
        """
        self.start()
        try:
            rest = [
                block for block in self.blocks.tolist() if block in self._changed or self._is_wiped(block)
            ]
            self._write_until_right(np.array([block for block in rest if block], np.int64), self._write_whole)
            self._write_until_right(np.zeros(1, np.int64), self._write_first)
            if self.rewritten_count:
                require_all_right()
        except StorageError:
            self._restore_marker()
            raise
        self._started = False
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
        length, marker = self._manifest.raw_length(block), self._marker()
        with self._writer.borrow_buffer() as buffer:
            buffer[:length] = self._held[block]
            buffer[: len(marker)] = marker
            self._writer.write(0, buffer[:length])
        self._target.sync()
        self._write_held(block, 0, min(_FIRST_BYTES, length))

    def _write_held(self, block: int, start: int, stop: int) -> None:
        if start >= stop:
            return
        with self._writer.borrow_buffer() as buffer:
            buffer[: stop - start] = self._held[block][start:stop]
            self._writer.write(block * self._manifest.block_bytes + start, buffer[: stop - start])

    def _restore_marker(self) -> None:
        """Write the marker again by the shortest way, since the target may be poisoned; best effort."""
        with contextlib.suppress(OSError):
            os.pwrite(self._target.fd, self._marker(), 0)
            os.fdatasync(self._target.fd)


def read_back_error(path: Path, manifest: Manifest, block: int) -> VerificationError:
    """Return the error for a block that read back wrong too often."""
    return VerificationError(
        f"{path}: block {block} (byte {block * manifest.block_bytes}) read back wrong {READ_BACK_FAILURES_MAX} "
        "times; the target is incomplete: replace the disk, or check its cable and this machine's memory"
    )
