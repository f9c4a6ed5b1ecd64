"""From a block's stored bytes to verified content on a target: what a cast's pipeline and a local restore share."""

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
from receiver.disk.scan_heuristic import worth_scanning
from receiver.disk.target import Target
from receiver.disk.verifier import Verifier
from receiver.disk.writer import DiskWriter
from receiver.shared.thread_time import BusyClock
from receiver.target.open_target import require_compatible


class Outcome(enum.Enum):
    """What became of a block's stored bytes."""

    WRITTEN = enum.auto()
    """On the target; to be flushed and verified."""
    HELD = enum.auto()
    """Held back until :meth:`BlockSink.commit`."""
    WRONG = enum.auto()
    """They aren't the block's: get them again."""


class BlockSink:
    """Takes an image's blocks for one target. Thread-safe; every method blocks, so call it from worker threads.

    The order of use: :meth:`prepare`; :meth:`zero` and :meth:`write_blocks` in any order, at each watermark
    :meth:`sync` and then :meth:`verify` of what was written before it; at last :meth:`commit`.

    Memory: for each thread that is inside at the same time a decoder and one write buffer, or one read-back buffer of
    :data:`receiver.disk.verifier.READ_BYTES`; and the blocks that are committed last, 32 MiB at most.

    Attributes:
        target: what is written.
        manifest: the image's.
        write_clock: the threads' time in writes.
        commit_last: what is held back.
    """

    def __init__(self, target: Target, manifest: Manifest) -> None:
        assert target.raw_bytes == manifest.raw_bytes
        self.target = target
        self.manifest = manifest
        self.write_clock = BusyClock()
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
        """Give back what writing needed; the target stays open."""
        self._writer.close()

    @property
    def used_bytes(self) -> int:
        """Raw bytes of the image that aren't unused."""
        return self.manifest.raw_bytes - self._kinds[BlockKind.UNUSED].raw_bytes

    @property
    def bytes_written(self) -> int:
        """Bytes written so far, rewritten ones counted again."""
        return self._writer.bytes_written

    def prepare(self) -> None:
        """Check that the image fits the target, and make a file as long as the image.

        Raises:
            TargetError: it doesn't fit, or its data has no room there; nothing was changed.
            StorageError: what was written to it earlier can't be flushed.
        """
        require_compatible(self.target, self.manifest)
        kinds = self._kinds
        self.target.prepare(kinds[BlockKind.DATA].raw_bytes + kinds[BlockKind.RAW].raw_bytes)
        # An agent that was killed may have left the right bytes in a cache only; what is kept must be on the disk.
        self.target.sync()

    def worth_scanning(self, rng: random.Random) -> bool:
        """Whether the target seems to hold some of the image already.

        Raises:
            StorageError: the disk couldn't be read.
        """
        return worth_scanning(self.target.read_back, self._verifier, self.manifest, rng)

    def zero(self, blocks: NDArray[np.int64]) -> None:
        """Make ``blocks`` (ascending, of kind ZERO) read as zeros.

        Raises:
            StorageError: final, the target is poisoned.
        """
        self.commit_last.begin()
        self._writer.zero_blocks(blocks)

    def write_blocks(self, blocks: Sequence[tuple[int, NDArray[np.uint8] | memoryview]]) -> list[Outcome]:
        """Check stored bytes, decompress them and write the result, neighbours together.

        Args:
            blocks: numbers of stored blocks, distinct, and their stored bytes, contiguous, not kept.

        Returns:
            What became of each, in the same order.

        Raises:
            ImageDamagedError: these are the image's bytes, but they don't decompress to the block's size. Fetching
                them again can't help, so it isn't told as WRONG.
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
            with self.write_clock:
                self.commit_last.begin()
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
        """Consecutive blocks that fit a buffer."""
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
        with self.write_clock:
            self._writer.write(run.start * self.manifest.block_bytes, buffer[:end])

    def require_raw_hash(self, block: int, stored: memoryview) -> None:
        """Raise unless ``stored``, the block's right stored bytes, unpack to what the manifest's raw hash says.

        Raises:
            ImageDamagedError: the image contradicts itself, or as :meth:`write_blocks`.
        """
        self._decoded(block, stored)

    def _decoded(self, block: int, stored: memoryview) -> memoryview:
        """A block in memory of its own, right by its raw hash as well."""
        raw = memoryview(bytearray(self.manifest.raw_length(block)))
        self._decode_into(block, stored, raw)
        if block_hash(raw) != self.manifest.raw_hash[block].tobytes():
            raise ImageDamagedError(
                f"image {self.manifest.name!r}: block {block} unpacks to something else than its raw hash says: pack "
                "the image again"
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
                f"image {self.manifest.name!r}: block {block} is what its manifest says, but was packed wrongly: "
                f"{error}; pack the image again"
            ) from error
        self._free_decoders.append(decoder)

    def sync(self) -> None:
        """Wait until everything written so far is on the disk.

        Raises:
            StorageError: final, the target is poisoned.
        """
        self.target.sync()

    def verify(self, blocks: NDArray[np.int64], threads: int = 1) -> NDArray[np.int64]:
        """Those of ``blocks`` (ascending, distinct) that read back wrong past the page cache; call :meth:`sync` first.

        Args:
            blocks: block numbers.
            threads: how many read and hash at the same time.

        Raises:
            StorageError: the disk couldn't be read, or the target is poisoned.
        """
        self.target.check()
        return self._verifier.verify_blocks(blocks, threads=threads)

    def missing(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of ``blocks`` (ascending, distinct) that the target doesn't hold, before they are written.

        Raises:
            StorageError: the disk can't be read in too many places, or the target is poisoned.
        """
        self.target.check()
        return self._verifier.missing_blocks(blocks)

    def commit(self, *, reread: bool = False) -> None:
        """Write what was held back, last of all, and verify it; a target that was right already is left as it is.

        Args:
            reread: a block read back wrong at first. Its bytes may have landed on another that was right before, so
                all are read once more.

        Raises:
            VerificationError: a block read back wrong twice, or isn't right any more; the target is marked as
                incomplete.
            StorageError: it failed; the target is marked as incomplete.
        """
        if not self.commit_last.due:
            self.target.cut_off()
            self.target.sync()
            return
        self.commit_last.begin()
        used = self.manifest.kind != BlockKind.UNUSED
        # A disk that knows lives longer. Not at the edges: there it would give up the mark, or what was wiped.
        given_up = ~used
        given_up[commit_blocks(self.manifest)] = False
        for unused in iter_set_blocks(given_up):
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
                f"{self.target.path}: block {block} (byte {block * self.manifest.block_bytes}) was right and isn't any "
                "more: the disk wrote there what belongs elsewhere; the target is incomplete: replace the disk, or "
                "check its cable and this machine's memory"
            )
