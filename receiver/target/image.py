"""The image on its way to the target: its manifest, the state of its blocks, and the blocking steps of writing it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import BLOCK_TAG_BYTES, MIB
from protocol.errors import CastFailedError
from protocol.fec.reed_solomon import decode_in_place
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.stored_manifest import StoredManifest
from protocol.model.session_records import CastParameters
from protocol.patch.effective_manifest import effective_manifest
from protocol.patch.machine_patch import MachinePatch
from protocol.receiving.block_assembly import AssembledBlock
from protocol.shared.block_masks import first_set, sample_set
from protocol.trust.block_cipher import BlockCipher
from receiver.disk.fit.fit_target import check_fit, fit
from receiver.disk.scan_heuristic import SAMPLE_COUNT
from receiver.disk.target import Target
from receiver.disk.watched_threads import WatchedThreads
from receiver.shared.thread_time import ThreadTimer
from receiver.target.block_sink import BlockSink, Outcome
from receiver.target.options import DEFAULTS, TargetOptions
from receiver.target.patch_blocks import PatchBlocks, unpatched

ZERO_STEP_BYTES: Final = 256 * MIB
"""Bytes zeroed and verified in one step; between two steps the agent can be stopped."""

VERIFY_THREADS: Final = 2
"""Threads that read back written blocks. One falls behind the writers at 1 GB/s: its reads queue behind several writes,
and it doesn't read while it hashes."""

SCAN_STEP_BYTES: Final = 32 * MIB
"""Bytes scanned in one step: 0.3 s on a hard disk, so that findings are reported soon."""

DECRYPT_BYTES: Final = 4 * MIB
"""Decrypted blocks of one thread: a whole batch of the usual size, or one block of the largest."""


PermitPatch = Callable[[Manifest], MachinePatch | None]
"""Returns the patch to write with the image of a manifest, or raises :class:`protocol.errors.PatchRefusedError`."""


def no_patch(_manifest: Manifest) -> MachinePatch | None:
    """Permit nothing but the image itself."""
    return None


class TargetImage:
    """One image on its way to one target, over as many runs of the sender as it takes.

    Methods that block are documented as blocking and called from worker threads, all others from the trio thread.

    Attributes:
        manifest: the image's, as the sender casts it; None until :meth:`take_manifest`. With a machine patch the target
            is written and verified by the effective manifest; patched blocks are in neither ``need`` nor ``unscanned``.
        need: ``bool[block_count]``: stored blocks that are known to be missing on the target.
        unscanned: ``bool[block_count]``: stored and zero blocks that weren't scanned yet.
        needed_count: stored blocks that are neither verified nor held back, including unscanned ones.
        raw_bytes_verified: raw bytes read back and right, including zeros.
        raw_bytes_kept: the part of them that the target held already.
        blocks_verified_count: blocks read back and right, including zeros.
        blocks_rewritten_count: blocks that read back wrong and were received again.
        fitted: sentences for people about the changes that fitted the image to the target.
        threads: the worker threads for blocking methods.
    """

    def __init__(
        self, target: Target, options: TargetOptions = DEFAULTS, *, rng: random.Random | None = None
    ) -> None:
        """Prepare an image without a manifest.

        Args:
            target: opened and checked.
            options: whether to scan the target, and how to fit the image to it.
            rng: draws the sample that decides whether a scan is worthwhile.
        """
        self.manifest: Manifest | None = None
        self.need: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.unscanned: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.needed_count = 0
        self.raw_bytes_verified = 0
        self.raw_bytes_kept = 0
        self.blocks_verified_count = 0
        self.blocks_rewritten_count = 0
        self.fitted: list[str] = []
        self.threads = WatchedThreads(target.hang_watchdog)
        self._target = target
        self._options = options
        self._rng = rng or random.Random()
        self._sink: BlockSink | None = None
        self._patch: PatchBlocks | None = None
        self._zeros_due: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._zeros_due_count = 0
        self._zeros_due_start = 0  # no block before this one is due
        self._zeros_lock = threading.Lock()  # a worker thread chooses its step
        self._unscanned_count = 0
        self._held_back: list[int] = []
        self._committed = False
        self._block_timer = ThreadTimer()
        self._free_buffers: list[NDArray[np.uint8]] = []

    @property
    def target_path(self) -> Path:
        """Return the target's path as the operator named it."""
        return self._target.path

    @property
    def raw_bytes(self) -> int:
        """Return the size of the image that the target was opened for."""
        return self._target.raw_bytes

    @property
    def raw_bytes_used(self) -> int:
        """Return the bytes of all blocks that aren't unused; the whole image until the manifest is known."""
        return self.raw_bytes if self._sink is None else self._sink.used_bytes

    @property
    def bytes_written(self) -> int:
        """Return the bytes written to the target so far, counting rewritten ones again."""
        return 0 if self._sink is None else self._sink.bytes_written

    @property
    def write_s(self) -> float:
        """Return the thread-seconds spent writing blocks, including writes that haven't returned."""
        return 0.0 if self._sink is None else self._sink.write_timer.busy_s()

    @property
    def decode_s(self) -> float:
        """Return the thread-seconds spent on blocks before writing: repairing, checking, decompressing."""
        return max(0.0, self._block_timer.busy_s() - self.write_s)

    @property
    def patch(self) -> MachinePatch | None:
        """Return the machine patch; None before the manifest is known, or without one."""
        return None if self._patch is None else self._patch.patch

    @property
    def patch_due(self) -> bool:
        """Return whether blocks of the machine patch wait to be written and verified."""
        return self._patch is not None and self._patch.due

    @property
    def zeros_due(self) -> bool:
        """Return whether zero blocks wait to be zeroed and verified."""
        return self._zeros_due_count > 0

    @property
    def scanning(self) -> bool:
        """Return whether part of the target is still unscanned."""
        return self._unscanned_count > 0

    @property
    def scanned_share(self) -> float:
        """Return the scanned share of the target, 0..1; 1 if no scan is needed."""
        count = self.unscanned.size
        return 1.0 - self._unscanned_count / count if count else 1.0

    @property
    def commit_due(self) -> bool:
        """Return whether all blocks are verified except those that are written last."""
        return (
            self.manifest is not None
            and not self._committed
            and not self.scanning
            and not self.zeros_due
            and not self.patch_due
            and self.needed_count == 0
        )

    @property
    def complete(self) -> bool:
        """Return whether every block is verified on the target."""
        return self._committed

    def close(self) -> None:
        """Release the write buffers; the target stays open."""
        if self._sink is not None:
            self._sink.close()

    # -- blocking ---------------------------------------------------------------------------------------------

    def take_manifest(
        self,
        data: bytes | memoryview | StoredManifest,
        parameters: CastParameters,
        permit: PermitPatch = no_patch,
    ) -> None:
        """Check the manifest, prepare the target, and decide whether to scan it. Blocks.

        Args:
            data: the manifest.
            parameters: the cast's.
            permit: decides about the machine's patch, before the first change of the target.

        Raises:
            CastFailedError: it isn't the manifest of the cast's image.
            PatchRefusedError: the machine's patch isn't allowed.
            ImageError: the manifest is damaged or from a newer diskcast.
            TargetError: the image doesn't fit the target.
            FitError: it can't be fitted to the target as requested.
            StorageError: the target can't be read.
        """
        manifest = Manifest.parse_untrusted(data)
        if manifest.image_id != parameters.image_id:
            raise CastFailedError(
                f"the sender's manifest has the digest {manifest.image_id.hex()[:16]}…, the cast announced "
                f"{parameters.image_id.hex()[:16]}…: start the cast again"
            )
        if (manifest.raw_bytes, manifest.block_bytes) != (parameters.raw_bytes, parameters.block_bytes):
            raise CastFailedError("the cast's sizes contradict its image's manifest: start the cast again")
        patch = permit(manifest)
        check_fit(self._options.fit, self._target, manifest)
        sink = BlockSink(self._target, manifest if patch is None else effective_manifest(manifest, patch))
        sink.prepare()
        scanned = self._options.scans and sink.worth_scanning(self._rng)
        stored = unpatched(manifest.stored_mask, patch)
        zeros = unpatched(manifest.kind == BlockKind.ZERO, patch)
        zeros[0] = False  # committed last
        self.needed_count = int(np.count_nonzero(stored))
        last = sink.commit_last.blocks[stored[sink.commit_last.blocks]]
        self.need, self._zeros_due = stored, zeros
        self.unscanned = np.zeros_like(stored)
        if scanned:
            self.unscanned |= stored
            self.unscanned |= zeros
            stored[:] = False
            zeros[:] = False
        self._unscanned_count = int(np.count_nonzero(self.unscanned))
        self._zeros_due_count = int(np.count_nonzero(self._zeros_due))
        self._sink = sink
        self.manifest = manifest
        self._patch = None if patch is None else PatchBlocks(patch, sink)
        if scanned:
            # Must precede the first change of the target, which wipes its edges.
            right = sink.commit_last.keep_matching()
            if self._patch is not None:
                self.raw_bytes_kept += self._count_verified(self._patch.keep_matching(right))
                right = right[np.isin(right, self._patch.patch.blocks, invert=True)]
            self.mark_held(right)
            self.mark_missing(np.setdiff1d(last, right, assume_unique=True))

    def scan(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of ``blocks`` (ascending) that the target doesn't hold. Blocks.

        Raises:
            StorageError: the target can't be read.
        """
        assert self._sink is not None
        return self._sink.missing(blocks)

    def seems_empty(self, sample: NDArray[np.int64]) -> bool:
        """Return whether none of ``sample`` (ascending) is on the target, so that the rest can be skipped. Blocks.

        Raises:
            StorageError: the target can't be read.
        """
        assert self._sink is not None
        return self._sink.missing(sample).size == sample.size

    def write_blocks(
        self, blocks: Sequence[AssembledBlock], cipher: BlockCipher | None = None
    ) -> list[Outcome]:
        """Decode, decrypt, check and write some blocks. Blocks.

        Args:
            blocks: distinct assembled blocks.
            cipher: the cipher of the run that sent them; None if they aren't encrypted.

        Returns:
            The outcome of each.

        Raises:
            ImageDamagedError: the image was packed wrongly.
            StorageError: writing failed.
        """
        assert self._sink is not None
        with self._block_timer:
            for block in blocks:
                decode_in_place(block.slots, block.slot_esi)
            if cipher is not None:
                return self._write_encrypted(blocks, cipher)
            return self._sink.write_blocks([(block.block, block.payload) for block in blocks])

    def _write_encrypted(self, blocks: Sequence[AssembledBlock], cipher: BlockCipher) -> list[Outcome]:
        """Decrypt and write blocks, as many at a time as fit a buffer: the symbols stay, in case they are wrong."""
        assert self._sink is not None
        assert self.manifest is not None
        block_bytes = self.manifest.block_bytes
        step = max(1, DECRYPT_BYTES // block_bytes)
        buffer = self._free_buffers.pop() if self._free_buffers else np.empty(step * block_bytes, np.uint8)
        outcomes: dict[int, Outcome] = {}
        for start in range(0, len(blocks), step):
            opened: list[tuple[int, NDArray[np.uint8]]] = []
            for row, block in enumerate(blocks[start : start + step]):
                stored = buffer[row * block_bytes :][: block.payload.size - BLOCK_TAG_BYTES]
                if cipher.open_into_untrusted(block.object, block.block, block.payload, stored):
                    opened.append((block.block, stored))
                else:
                    outcomes[block.block] = Outcome.WRONG
            written = self._sink.write_blocks(opened)
            outcomes.update(zip([block for block, _ in opened], written, strict=True))
        self._free_buffers.append(buffer)
        return [outcomes[block.block] for block in blocks]

    def sync_and_verify(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Flush, then read ``blocks`` (ascending, distinct) back. Blocks.

        Returns:
            Those that read back wrong.

        Raises:
            StorageError: flushing or reading failed.
        """
        assert self._sink is not None
        self._sink.sync()
        return self._sink.verify(blocks, VERIFY_THREADS)

    def zero_step(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Zero the next zero blocks and verify them. Blocks.

        Returns:
            The blocks of this step, for :meth:`mark_zeroed`, and those of them that read back wrong.

        Raises:
            StorageError: zeroing, flushing or reading failed.
        """
        assert self._sink is not None
        assert self.manifest is not None
        step_blocks = max(1, ZERO_STEP_BYTES // self.manifest.block_bytes)
        with self._zeros_lock:
            blocks = first_set(self._zeros_due, self._zeros_due_start, step_blocks)
            self._zeros_due_start = int(blocks[0])
        self._sink.zero(blocks)
        return blocks, self.sync_and_verify(blocks)

    def patch_step(self) -> tuple[list[int], NDArray[np.int64], NDArray[np.int64]]:
        """Write the next blocks of the machine patch and verify them. Blocks.

        Returns:
            The blocks of this step that are held back and those that were written, both for :meth:`mark_patched`; and
            those that read back wrong.

        Raises:
            StorageError: writing, flushing or reading failed.
        """
        assert self._patch is not None
        held, written = self._patch.write_step()
        return held, written, self.sync_and_verify(written)

    def commit(self) -> None:
        """Write the held-back blocks and verify them, then fit the image to the target. Blocks.

        Raises:
            StorageError: it failed; the target is marked as incomplete again.
            FitError: the image is verified, but couldn't be fitted.
        """
        assert self._sink is not None
        assert self.manifest is not None
        self._sink.commit(reread=self.blocks_rewritten_count > 0)
        self.fitted = fit(self._target, self.manifest, self._options.fit)

    # -- results ----------------------------------------------------------------------------------------------

    def next_scan_step(self, start: int) -> NDArray[np.int64]:
        """Return the next unscanned blocks from ``start`` on, enough for one step; empty if there are none."""
        assert self.manifest is not None
        return first_set(self.unscanned, start, max(1, SCAN_STEP_BYTES // self.manifest.block_bytes))

    def sample_unscanned(self, start: int) -> NDArray[np.int64]:
        """Draw a few unscanned blocks, ascending, for :meth:`seems_empty`; stored ones, as zeros match by chance."""
        assert self.manifest is not None
        stored = sample_set(self.unscanned & self.manifest.stored_mask, SAMPLE_COUNT, self._rng, start)
        return stored if stored.size else sample_set(self.unscanned, SAMPLE_COUNT, self._rng, start)

    def mark_held(self, blocks: NDArray[np.int64]) -> None:
        """Record that the target holds these unscanned blocks, which need no more work."""
        assert self.manifest is not None
        self._clear_unscanned(blocks)
        self.needed_count -= int(np.count_nonzero(self.manifest.are_stored(blocks)))
        self.raw_bytes_kept += self._count_verified(blocks)

    def mark_missing(self, blocks: NDArray[np.int64]) -> None:
        """Record that the target doesn't hold these unscanned blocks."""
        assert self.manifest is not None
        self._clear_unscanned(blocks)
        zeros = blocks[self.manifest.kind[blocks] == BlockKind.ZERO]
        if zeros.size:
            with self._zeros_lock:
                self._zeros_due[zeros] = True
                self._zeros_due_start = min(self._zeros_due_start, int(zeros[0]))
        self._zeros_due_count += int(zeros.size)
        self.need[blocks[self.manifest.are_stored(blocks)]] = True

    def mark_arrived(self, block: int) -> None:
        """Record that a block arrived, which is written whether or not it was scanned."""
        if self.unscanned[block]:
            self.unscanned[block] = False
            self._unscanned_count -= 1
            self.need[block] = True

    def _clear_unscanned(self, blocks: NDArray[np.int64]) -> None:
        assert self.unscanned[blocks].all()
        self.unscanned[blocks] = False
        self._unscanned_count -= int(blocks.size)

    def mark_zeroed(self, blocks: NDArray[np.int64]) -> None:
        """Record that the blocks of a :meth:`zero_step` are verified."""
        self._zeros_due[blocks] = False
        self._zeros_due_count -= int(blocks.size)
        self._count_verified(blocks)

    def mark_patched(self, held: list[int], written: NDArray[np.int64]) -> None:
        """Record that the blocks of a :meth:`patch_step` are verified or held back."""
        assert self._patch is not None
        self._patch.mark_written(held, written)
        self._count_verified(written)

    def mark_verified(self, blocks: NDArray[np.int64]) -> None:
        """Record that stored blocks are verified."""
        self.need[blocks] = False
        self.needed_count -= int(blocks.size)
        self._count_verified(blocks)

    def mark_held_back(self, block: int) -> None:
        """Record that a block arrived that is written once all others are verified."""
        self.need[block] = False
        self.needed_count -= 1
        self._held_back.append(block)

    def mark_committed(self) -> NDArray[np.int64]:
        """Record that the held-back blocks are verified, and with them the image.

        Returns:
            The received blocks that were held back, ascending.
        """
        assert self._sink is not None
        assert self.manifest is not None
        last = np.array(sorted(self._held_back), np.int64)
        self._count_verified(last)
        if self._patch is not None:
            self._count_verified(np.array(sorted(self._patch.held_back), np.int64))
        if self._sink.manifest.kind[0] == BlockKind.ZERO:
            self._count_verified(np.zeros(1, np.int64))
        self.blocks_rewritten_count += self._sink.commit_last.rewritten_count
        self._committed = True
        return last

    def _count_verified(self, blocks: NDArray[np.int64]) -> int:
        assert self.manifest is not None
        self.blocks_verified_count += int(blocks.size)
        raw_bytes = self.manifest.raw_bytes_of(blocks)
        self.raw_bytes_verified += raw_bytes
        return raw_bytes
