"""The blocks of a machine's patch on their way to the target, beside those that the sender casts."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import MIB
from protocol.image.manifest import BlockKind
from protocol.patch.machine_patch import MachinePatch
from receiver.target.block_sink import BlockSink, Outcome

_STEP_BYTES: Final = 64 * MIB
"""Bytes written in one step; between two steps the agent can be stopped."""


class PatchBlocks:
    """A permitted patch, written once the target is prepared; the trio thread and one worker thread take turns.

    Attributes:
        patch: the patch.
        held_back: its blocks that are written last.
    """

    def __init__(self, patch: MachinePatch, sink: BlockSink) -> None:
        self.patch = patch
        self.held_back: list[int] = []
        self._sink = sink
        # The sink itself holds a first block of zeros back, in which the marker is.
        self._due = patch.blocks[(patch.blocks > 0) | (patch.kind <= BlockKind.RAW)]

    @property
    def due(self) -> bool:
        """Return whether blocks wait to be written and verified."""
        return self._due.size > 0

    def keep_matching(self, held: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the blocks that the target holds, ascending, which need no more work. Blocks.

        Args:
            held: blocks among those to write last that the sink found right; it has read all of these.

        Raises:
            StorageError: the target can't be read.
        """
        last = np.isin(self._due, self._sink.commit_last.blocks)
        unread = self._due[~last]
        right = np.setdiff1d(unread, self._sink.missing(unread), assume_unique=True)
        kept = np.union1d(right, np.intersect1d(self._due, held))
        self._due = np.setdiff1d(self._due, kept, assume_unique=True)
        return kept

    def write_step(self) -> tuple[list[int], NDArray[np.int64]]:
        """Write some due blocks. Blocks.

        Returns:
            Those that are held back, and those that are written and must be flushed and verified, ascending.

        Raises:
            StorageError: writing failed.
        """
        patch = self.patch
        step = self._due[: max(1, _STEP_BYTES // patch.block_bytes)]
        rows = np.searchsorted(patch.blocks, step)
        zero = patch.kind[rows] == BlockKind.ZERO
        if zero.any():
            self._sink.zero(step[zero])
        stored = [(int(patch.blocks[row]), patch.stored(row)) for row in rows[~zero].tolist()]
        outcomes = self._sink.write_blocks(stored)
        assert Outcome.WRONG not in outcomes, "a parsed patch has the hashes of the effective manifest"
        held = [
            block for (block, _), outcome in zip(stored, outcomes, strict=True) if outcome is Outcome.HELD
        ]
        return held, np.setdiff1d(step, np.array(held, np.int64), assume_unique=True)

    def mark_written(self, held: list[int], verified: NDArray[np.int64]) -> None:
        """Record the result of a step whose blocks all read back right."""
        self.held_back += held
        self._due = np.setdiff1d(self._due, np.concatenate([np.array(held, np.int64), verified]))


def unpatched(mask: NDArray[np.bool_], patch: MachinePatch | None) -> NDArray[np.bool_]:
    """Clear the patched blocks of a mask, which the sender doesn't have to cast, and return it."""
    if patch is not None:
        mask[patch.blocks] = False
    return mask
