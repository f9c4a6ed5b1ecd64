"""The image as far as it is on the target: its manifest, what is verified, and the blocking steps that get it there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.block_assembly import AssembledBlock
from protocol.constants import MIB
from protocol.errors import CastFailedError
from protocol.fec.reed_solomon import decode_in_place
from protocol.manifest import BlockKind, Manifest
from protocol.session_records import CastParameters
from receiver.block_sink import BlockSink
from receiver.busy_clock import BusyClock
from receiver.target import Target

ZERO_STEP_BYTES: Final = 256 * MIB
"""Zeroed and verified in one step, after which the agent can still be stopped."""


class TargetImage:
    """One image on its way to one target, over as many runs of the sender as it takes.

    The methods that block say so; they are called from worker threads, all others from the trio thread.

    Attributes:
        manifest: None until :meth:`take_manifest`.
        need: ``bool[block_count]``: stored blocks that aren't verified on the target.
        needed_count: how many these are.
        raw_bytes_verified: raw bytes read back and right, zeros included.
        blocks_verified_count: blocks read back and right, zeros included.
    """

    def __init__(self, target: Target) -> None:
        self.manifest: Manifest | None = None
        self.need: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.needed_count = 0
        self.raw_bytes_verified = 0
        self.blocks_verified_count = 0
        self._target = target
        self._sink: BlockSink | None = None
        self._zeros: NDArray[np.int64] = np.zeros(0, np.int64)
        self._zeros_done_count = 0
        self._block_clock = BusyClock()

    @property
    def target_path(self) -> Path:
        """What is written, as the operator named it."""
        return self._target.path

    @property
    def raw_bytes(self) -> int:
        """Size of the image that the target was opened for."""
        return self._target.raw_bytes

    @property
    def bytes_written(self) -> int:
        """Bytes written to the target so far, rewritten ones counted again."""
        return 0 if self._sink is None else self._sink.bytes_written

    @property
    def write_s(self) -> float:
        """Thread-seconds spent in writing blocks, those of writes that haven't returned included."""
        return 0.0 if self._sink is None else self._sink.write_clock.busy_s()

    @property
    def decode_s(self) -> float:
        """Thread-seconds spent on blocks before they were written: repairing, checking, decompressing."""
        return max(0.0, self._block_clock.busy_s() - self.write_s)

    @property
    def zeros_left(self) -> bool:
        """Whether zero blocks wait to be zeroed and verified."""
        return self._zeros_done_count < self._zeros.size

    @property
    def complete(self) -> bool:
        """Whether every block is verified on the target."""
        return self.manifest is not None and not self.zeros_left and self.needed_count == 0

    # -- blocking ---------------------------------------------------------------------------------------------

    def take_manifest(self, data: bytes | bytearray | memoryview, parameters: CastParameters) -> None:
        """Check the manifest and make the target ready. Blocks.

        Raises:
            CastFailedError: it isn't the manifest of the cast's image.
            ImageError: it is, but is damaged or made by a newer diskcast.
            TargetError: the image has no room on the target.
        """
        manifest = Manifest.parse_untrusted(data)
        if manifest.image_id != parameters.image_id:
            raise CastFailedError(
                f"the sender's manifest has the digest {manifest.image_id.hex()[:16]}…, the cast announced "
                f"{parameters.image_id.hex()[:16]}…: start the cast again"
            )
        if (manifest.raw_bytes, manifest.block_bytes) != (parameters.raw_bytes, parameters.block_bytes):
            raise CastFailedError("the cast's sizes contradict its image's manifest: start the cast again")
        sink = BlockSink(self._target, manifest)
        sink.prepare()
        self.need = np.array(manifest.stored_mask)
        self.needed_count = int(np.count_nonzero(self.need))
        self._zeros = np.flatnonzero(manifest.kind == BlockKind.ZERO)
        self._sink = sink
        self.manifest = manifest

    def write_blocks(self, blocks: Sequence[AssembledBlock]) -> list[bool]:
        """Decode, check and write some blocks. Blocks.

        Returns:
            For each whether it was what the manifest says; others weren't written.

        Raises:
            ImageDamagedError: the image was packed wrongly.
            StorageError: writing failed.
        """
        assert self._sink is not None
        written = []
        with self._block_clock:
            for block in blocks:
                decode_in_place(block.slots, block.slot_esi)
                written.append(self._sink.decode_and_write(block.block, block.payload) > 0)
        return written

    def sync_and_verify(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Flush, then read ``blocks`` (ascending, distinct) back. Blocks.

        Returns:
            Those that read back wrong.

        Raises:
            StorageError: flushing or reading failed.
        """
        assert self._sink is not None
        self._sink.sync()
        return self._sink.verify(blocks)

    def zero_step(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Zero the next zero blocks and verify them. Blocks.

        Returns:
            The blocks of this step, for :meth:`mark_zeroed`, and those of them that read back wrong.

        Raises:
            StorageError: zeroing, flushing or reading failed.
        """
        assert self._sink is not None
        assert self.manifest is not None
        count = max(1, ZERO_STEP_BYTES // self.manifest.block_bytes)
        blocks = self._zeros[self._zeros_done_count : self._zeros_done_count + count]
        self._sink.prepare_zero_runs(blocks)
        return blocks, self.sync_and_verify(blocks)

    # -- results ----------------------------------------------------------------------------------------------

    def mark_zeroed(self, blocks: NDArray[np.int64]) -> None:
        """A step's blocks are verified."""
        self._zeros_done_count += blocks.size
        self._count_verified(blocks)

    def mark_verified(self, blocks: NDArray[np.int64]) -> None:
        """Stored blocks are verified."""
        self.need[blocks] = False
        self.needed_count -= int(blocks.size)
        self._count_verified(blocks)

    def _count_verified(self, blocks: NDArray[np.int64]) -> None:
        assert self.manifest is not None
        self.blocks_verified_count += int(blocks.size)
        raw_bytes = int(blocks.size) * self.manifest.block_bytes
        last = self.manifest.block_count - 1
        if blocks.size and blocks[-1] == last:
            raw_bytes -= self.manifest.block_bytes - self.manifest.raw_length(last)
        self.raw_bytes_verified += raw_bytes
