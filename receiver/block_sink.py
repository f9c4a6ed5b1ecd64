"""From a block's stored bytes to verified content on a target: what a cast's pipeline and a local restore share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.block_codec import BlockDecoder, block_hash
from protocol.errors import ImageDamagedError
from protocol.manifest import BlockKind, Manifest
from receiver.busy_clock import BusyClock
from receiver.disk.verifier import Verifier
from receiver.disk.writer import DiskWriter
from receiver.target import Target


class BlockSink:
    """Takes an image's blocks for one target. Thread-safe; every method blocks, so call it from worker threads.

    The order of use: :meth:`prepare`, :meth:`prepare_zero_runs`, then any number of :meth:`decode_and_write`; at each
    watermark :meth:`sync` and then :meth:`verify` of what was written before it.

    Memory, for each thread that is inside at the same time: a decoder and one decompressed block, or one read-back
    buffer of :data:`receiver.disk.verifier.READ_BYTES`.

    Attributes:
        write_clock: the threads' time in writes.
    """

    def __init__(self, target: Target, manifest: Manifest) -> None:
        assert target.raw_bytes == manifest.raw_bytes
        self.target = target
        self.manifest = manifest
        self.write_clock = BusyClock()
        self._writer = DiskWriter(target, manifest)
        self._verifier = Verifier(target.read_back, manifest)
        self._free_decoders: list[BlockDecoder] = []

    @property
    def bytes_written(self) -> int:
        """Bytes written so far, rewritten ones counted again."""
        return self._writer.bytes_written

    def prepare(self) -> None:
        """Make the target ready for writing: its first change.

        Raises:
            TargetError: the image's data has no room there; nothing was changed.
        """
        kinds = self.manifest.summary()
        self.target.prepare(kinds[BlockKind.DATA].raw_bytes + kinds[BlockKind.RAW].raw_bytes)

    def prepare_zero_runs(self, blocks: NDArray[np.int64]) -> None:
        """Zero those of ``blocks`` (ascending) that are of kind ZERO; they need no :meth:`decode_and_write`.

        Raises:
            StorageError: final, the target is poisoned.
        """
        self._writer.prepare_zero_runs(blocks)

    def decode_and_write(self, block: int, stored: NDArray[np.uint8] | memoryview) -> int:
        """Check a block's stored bytes, decompress them and write the result; RAW is written without a copy.

        Args:
            block: a block of kind DATA or RAW.
            stored: its stored bytes, contiguous, not kept.

        Returns:
            Raw bytes written. 0: these aren't the block's stored bytes, nothing was written; get them again.

        Raises:
            ImageDamagedError: these are the image's bytes, but they don't decompress to the block's size. Fetching
                them again can't help, so it isn't answered with 0.
            StorageError: final, the target is poisoned.
        """
        view = stored if isinstance(stored, memoryview) else stored.data
        manifest = self.manifest
        if (
            len(view) != manifest.stored_bytes[block]
            or block_hash(view) != manifest.stored_hash[block].tobytes()
        ):
            return 0
        raw = self._decode(block, view)
        with self.write_clock:
            self._writer.write_block(block, raw)
        return len(raw)

    def has_raw_hash(self, block: int, stored: memoryview) -> bool:
        """Whether ``stored`` unpacks to what the manifest's raw hash says.

        When a block reads back wrong, it tells an image that contradicts itself from a disk that doesn't keep what it
        was given.

        Raises:
            ImageDamagedError: as :meth:`decode_and_write`.
        """
        raw_hash: bytes = self.manifest.raw_hash[block].tobytes()
        return block_hash(self._decode(block, stored)) == raw_hash

    def _decode(self, block: int, stored: memoryview) -> memoryview:
        kind = BlockKind(int(self.manifest.kind[block]))
        if kind is BlockKind.RAW:
            return stored
        try:
            decoder = self._free_decoders.pop()
        except IndexError:
            decoder = BlockDecoder()
        try:
            raw = decoder.decode_untrusted(kind, stored, self.manifest.raw_length(block))
        except ImageDamagedError as error:
            raise ImageDamagedError(
                f"image {self.manifest.name!r}: block {block} is what its manifest says, but was packed wrongly: "
                f"{error}; pack the image again"
            ) from error
        self._free_decoders.append(decoder)
        return memoryview(raw)

    def sync(self) -> None:
        """Wait until everything written so far is on the disk.

        Raises:
            StorageError: final, the target is poisoned.
        """
        self.target.sync()

    def verify(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of ``blocks`` (ascending, distinct) that read back wrong past the page cache; call :meth:`sync` first.

        Raises:
            StorageError: the disk couldn't be read, or the target is poisoned.
        """
        self.target.check()
        return self._verifier.verify_blocks(blocks)
