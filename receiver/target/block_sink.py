"""The path from stored bytes to verified content on a target, shared by casts and local restores."""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ImageDamagedError, VerificationError
from protocol.image.block_codec import BlockDecoder, block_hash
from protocol.image.commit_blocks import commit_blocks
from protocol.image.manifest import BlockKind, Manifest
from protocol.shared.block_masks import iter_set_blocks
from receiver.disk.commit import CommitLast
from receiver.disk.file_holes import blocks_in_holes
from receiver.disk.scan_heuristic import worth_scanning
from receiver.disk.target import Target
from receiver.disk.verifier import Verifier
from receiver.disk.writer import DiskWriter
from receiver.shared.thread_time import ThreadTimer
from receiver.target.open_target import require_compatible


class Outcome(enum.Enum):
    """The result of writing a block's stored bytes."""

    WRITTEN = enum.auto()
    """Written to the target; not yet flushed and verified."""
    HELD = enum.auto()
    """Held back until :meth:`BlockSink.commit`."""
    WRONG = enum.auto()
    """Not the block's bytes: fetch them again."""


class BlockSink:
    """The sink for an image's blocks on one target. Thread-safe; every method blocks, so call it from worker threads.

    Order of use: :meth:`prepare`; then :meth:`zero` and :meth:`write_blocks` in any order, at each watermark
    :meth:`sync` and :meth:`verify` of the blocks written before it; finally :meth:`commit`.

    Memory: for each concurrent thread a decoder and one write buffer, or one read-back buffer of
    :data:`receiver.disk.verifier.READ_BYTES`; and the blocks that are committed last, 32 MiB at most.

    Attributes:
        target: the target to write.
        manifest: manifest of the image.
        write_timer: thread time spent in writes.
        commit_last: the held-back blocks.
    """

    def __init__(self, target: Target, manifest: Manifest) -> None:
        assert target.raw_bytes == manifest.raw_bytes
        self.target = target
        self.manifest = manifest
        self.write_timer = ThreadTimer()
        self._writer = DiskWriter(target, manifest)
        self._verifier = Verifier(target.read_back, manifest)
        self.commit_last = CommitLast(target, manifest, self._writer, self._verifier)
        self._free_decoders: list[BlockDecoder] = []
        self._kinds = manifest.summary()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the write buffers; the target stays open."""
        self._writer.close()

    @property
    def used_bytes(self) -> int:
        """Return the raw bytes of all blocks that aren't unused."""
        return self.manifest.raw_bytes - self._kinds[BlockKind.UNUSED].raw_bytes

    @property
    def bytes_written(self) -> int:
        """Return the bytes written so far, counting rewritten ones again."""
        return self._writer.bytes_written

    def prepare(self) -> None:
        """Check that the image fits the target, and extend a file to the length of the image.

        Raises:
            TargetError: the image doesn't fit, or the filesystem has no room for its data; nothing was changed.
            StorageError: earlier writes to the target can't be flushed.
        """
        require_compatible(self.target, self.manifest)
        kinds = self._kinds
        self.target.prepare(kinds[BlockKind.DATA].raw_bytes + kinds[BlockKind.RAW].raw_bytes)
        # A killed agent may have left right blocks in the page cache only; blocks that are kept must be on the disk.
        self.target.sync()

    def worth_scanning(self, rng: random.Random) -> bool:
        """Return whether the target seems to hold some of the image already.

        Raises:
            StorageError: the disk can't be read.
        """
        return worth_scanning(self.target.read_back, self._verifier, self.manifest, rng)

    def zero(self, blocks: NDArray[np.int64]) -> None:
        """Make ``blocks`` (ascending, of kind ZERO) read as zeros.

        Raises:
            StorageError: final, the target is poisoned.
        """
        self.commit_last.start()
        self._writer.zero_blocks(blocks)

    def write_blocks(self, blocks: Sequence[tuple[int, NDArray[np.uint8] | memoryview]]) -> list[Outcome]:
        """Check stored bytes, decompress them and write the result, neighbours together.

        Args:
            blocks: distinct numbers of stored blocks, each with its stored bytes, contiguous; not kept.

        Returns:
            The outcome of each, in the same order.

        Raises:
            ImageDamagedError: these are the image's bytes, but they don't decompress to the block's size. Fetching
                them again can't help, so the outcome isn't WRONG.
            StorageError: final, the target is poisoned.
        """
        outcomes: dict[int, Outcome] = {}
        right: dict[int, memoryview] = {}
        for block, stored in blocks:
            view = stored if isinstance(stored, memoryview) else stored.data
            if not self._is_right(block, view):
                outcomes[block] = Outcome.WRONG
            elif block in self.commit_last:
                self.commit_last.hold(block, self._decoded(block, view))
                outcomes[block] = Outcome.HELD
            else:
                right[block] = view
                outcomes[block] = Outcome.WRITTEN
        if right:
            with self.write_timer:
                self.commit_last.start()
            with self._writer.borrow_buffer() as buffer:
                for run in self._runs(sorted(right), len(buffer)):
                    self._write_run(run, right, buffer)
        return [outcomes[block] for block, _ in blocks]

    def _is_right(self, block: int, stored: memoryview) -> bool:
        manifest = self.manifest
        return (
            len(stored) == manifest.stored_bytes[block]
            and block_hash(stored) == manifest.stored_hash[block].tobytes()
        )

    def _runs(self, blocks: list[int], room_bytes: int) -> Iterator[range]:
        """Split blocks into runs of consecutive numbers that fit a buffer."""
        blocks_max = room_bytes // self.manifest.block_bytes
        start = blocks[0]
        for before, block in zip(blocks, [*blocks[1:], -1], strict=True):
            if block != before + 1 or block - start == blocks_max:
                yield range(start, before + 1)
                start = block

    def _write_run(self, run: range, stored: dict[int, memoryview], buffer: memoryview) -> None:
        end = 0
        for block in run:
            length = self.manifest.raw_length(block)
            self._decode_into(block, stored[block], buffer[end : end + length])
            end += length
        with self.write_timer:
            self._writer.write(run.start * self.manifest.block_bytes, buffer[:end])

    def require_raw_hash(self, block: int, stored: memoryview) -> None:
        """Check that ``stored``, the right stored bytes of a block, decompress to content with the manifest's raw hash.

        Raises:
            ImageDamagedError: the image contradicts itself, or as :meth:`write_blocks`.
        """
        self._decoded(block, stored)

    def _decoded(self, block: int, stored: memoryview) -> memoryview:
        """Return a block's content in memory of its own, checked against its raw hash."""
        raw = memoryview(bytearray(self.manifest.raw_length(block)))
        self._decode_into(block, stored, raw)
        if block_hash(raw) != self.manifest.raw_hash[block].tobytes():
            raise ImageDamagedError(
                f"image {self.manifest.name!r}: block {block} doesn't decompress to its raw hash: pack the image again"
            )
        return raw

    def _decode_into(self, block: int, stored: memoryview, into: memoryview) -> None:
        try:
            decoder = self._free_decoders.pop()
        except IndexError:
            decoder = BlockDecoder()
        try:
            decoder.decode_into_untrusted(BlockKind(int(self.manifest.kind[block])), stored, into)
        except ImageDamagedError as error:
            raise ImageDamagedError(
                f"image {self.manifest.name!r}: block {block} matches its manifest, but was packed wrongly: {error}; "
                "pack the image again"
            ) from error
        self._free_decoders.append(decoder)

    def sync(self) -> None:
        """Wait until all writes so far are on the disk.

        Raises:
            StorageError: final, the target is poisoned.
        """
        self.target.sync()

    def verify(self, blocks: NDArray[np.int64], threads: int = 1) -> NDArray[np.int64]:
        """Return those of ``blocks`` (ascending, distinct) that read back wrong past the page cache.

        Call :meth:`sync` first.

        Args:
            blocks: block numbers.
            threads: number of threads that read and hash.

        Raises:
            StorageError: the disk can't be read, or the target is poisoned.
            TargetReplacedError: they are wrong since another program changed the target file.
        """
        self.target.check()
        wrong = self._verifier.verify_blocks(blocks, threads=threads)
        if wrong.size:
            self.target.require_in_place()  # otherwise the disk would be blamed
        return wrong

    def missing(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of ``blocks`` (ascending, distinct) that the target doesn't hold, before they are written.

        Raises:
            StorageError: the disk has too many unreadable blocks, or the target is poisoned.
        """
        self.target.check()
        return self._verifier.missing_blocks(blocks)

    def commit(self, *, reread: bool = False) -> None:
        """Write the held-back blocks last and verify them; a target that was right already stays unchanged.

        Args:
            reread: a block read back wrong at first. Its bytes may have overwritten another block, so all blocks are
                read once more.

        Raises:
            VerificationError: a block read back wrong twice, or isn't right any more; the target is marked as
                incomplete.
            TargetReplacedError: another program removed, replaced or truncated the target file.
            StorageError: writing or reading failed; the target is marked as incomplete.
        """
        self._require_untouched()
        if self.commit_last.due:
            self._commit_last(reread=reread)
        else:
            self.target.cut_off()
            self.target.sync()
        self.target.require_in_place()

    def _require_untouched(self) -> None:
        """Check that no other program has removed, replaced or truncated the target file since it was verified.

        A file that was truncated has its length again once later blocks are written; the lost ones are holes.
        """
        self.target.require_in_place()
        if self.target.is_device:
            return
        manifest = self.manifest
        written = manifest.stored_mask
        written[self.commit_last.blocks] = False  # not written yet
        suspects = blocks_in_holes(self.target.fd, written, manifest.block_bytes, manifest.raw_bytes)
        lost = self._verifier.verify_blocks(suspects)
        if lost.size:
            raise self.target.replaced_error("truncated")

    def _commit_last(self, *, reread: bool) -> None:
        self.commit_last.start()
        used = self.manifest.kind != BlockKind.UNUSED
        # Discarding unused blocks spares the disk. Not at the edges: that could lose the marker or undo the wiping.
        discardable = ~used
        discardable[commit_blocks(self.manifest)] = False
        for unused in iter_set_blocks(discardable):
            self._writer.discard_blocks(unused)
        if reread:
            others = used.copy()
            others[self.commit_last.blocks] = False
            self._require_right(others)
        self.commit_last.commit(lambda: self._require_right(used))

    def _require_right(self, mask: NDArray[np.bool_]) -> None:
        for blocks in iter_set_blocks(mask):
            wrong = self.verify(blocks)
            if wrong.size == 0:
                continue
            block = int(wrong[0])
            raise VerificationError(
                f"{self.target.path}: block {block} (byte {block * self.manifest.block_bytes}) was verified, but has "
                "changed: the disk wrote data to the wrong place; the target is incomplete: replace the disk, or check "
                "its cable and this machine's memory"
            )
