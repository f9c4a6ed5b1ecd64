"""Pipeline from assembled to verified blocks: worker threads decode and write, then flush and read back.

::

    submit ─► (bounded channel) ─► write, several at once ─► verify at watermarks ─► commit ─► image complete
                                        └── held back until all else is verified ───────┘

The stages report each block's result to the session, which requests damaged blocks again. Cancellation never interrupts
a step in a thread: a block is written whole or not at all.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np
import trio

from protocol.constants import BLOCK_BYTES_MIN, MIB
from protocol.errors import CastFailedError
from protocol.receiving.block_assembly import AssembledBlock
from protocol.receiving.receiver_session import ReceiverSession
from receiver.disk.commit import READ_BACK_FAILURES_MAX, read_back_error
from receiver.target.block_sink import Outcome
from receiver.target.image import TargetImage

WRITERS_MAX: Final = 4
"""Most threads that decode and write. There is one more than processors, since one waits for the disk. With fewer
processors decoding is the bottleneck, with more the disk is."""

BLOCKS_PER_BATCH: Final = 16
"""Blocks that go to a worker thread together: for 4 MiB the thread switch (0.1 ms) is small beside the work (4 ms)."""

LINGER_S: Final = 0.025
"""Longest time that an assembled block waits for its batch to fill."""

VERIFY_BYTES: Final = 64 * MIB
"""Written bytes at which they are flushed and read back, while other blocks are still being written."""

VERIFY_BYTES_MIN: Final = 8 * MIB
"""Least such watermark. Towards the end it is a quarter of the remaining bytes, so that little is left to verify after
the last block."""

VERIFY_INTERVAL_S: Final = 2.0
"""Longest time between verifications: the sender sees progress, and after an interruption less is sent again."""

WRONG_FETCHES_MAX: Final = 3
"""Wrong copies of one block over the control API, which nobody else can forge, after which the sender is to blame."""

_CHANNEL_SLACK: Final = 8


def writer_count() -> int:
    """Return the number of threads that decode and write on this machine."""
    return min(WRITERS_MAX, len(os.sched_getaffinity(0)) + 1)


class Pipeline:
    """The decode, write, verify and commit stages of one session.

    Attributes:
        in_flight_count: submitted blocks that are neither verified nor rejected yet.
    """

    def __init__(
        self,
        session: ReceiverSession,
        image: TargetImage,
        *,
        assembly_bytes: int,
        on_rejected: Callable[[], None],
        on_complete: Callable[[], None],
    ) -> None:
        """Args:
        session: gets each block's result.
        image: the target to write and verify.
        assembly_bytes: size of the session's buffer pool.
        on_rejected: called when the session has a block to request again.
        on_complete: called when every block of the image is verified.
        """
        self.in_flight_count = 0
        self._session = session
        self._image = image
        self._on_rejected = on_rejected
        self._on_complete = on_complete
        self._writer_count = writer_count()
        # The channel is never full: every batch holds at least one buffer, and the pool has fewer than this.
        batches_max = assembly_bytes // BLOCK_BYTES_MIN + _CHANNEL_SLACK
        self._batches_in, self._batches_out = trio.open_memory_channel[list[AssembledBlock]](batches_max)
        self._lingering: list[AssembledBlock] = []
        self._linger_until = 0.0
        self._written: list[int] = []
        self._verify_due = trio.Event()
        self._writing_done = False
        self._zeroing = trio.CancelScope()
        self._zeros_found = trio.Event()
        self._committing = False
        self._nursery: trio.Nursery | None = None
        self._wrong_fetches: Counter[int] = Counter()
        self._read_back_failures: Counter[int] = Counter()

    @property
    def all_received(self) -> bool:
        """Return whether every block that isn't verified yet was submitted."""
        return self._image.manifest is not None and self._image.needed_count == self.in_flight_count

    # -- called by the receive loop -----------------------------------------------------------------------------

    def submit(self, block: AssembledBlock, now: float) -> None:
        """Take an assembled block; its buffer is released to the session once it is written."""
        if not self._lingering:
            self._linger_until = now + LINGER_S
        self._lingering.append(block)
        self.in_flight_count += 1
        self._image.mark_arrived(block.block)
        if len(self._lingering) >= BLOCKS_PER_BATCH:
            self._submit_batch()

    def flush_lingering(self, now: float) -> float:
        """Submit a batch that has lingered long enough; return when to call again, infinity for never."""
        if self._lingering and now >= self._linger_until:
            self._submit_batch()
        return self._linger_until if self._lingering else float("inf")

    def _submit_batch(self) -> None:
        self._batches_in.send_nowait(self._lingering)
        self._lingering = []

    def close(self) -> None:
        """End the input: :meth:`run` returns once all submitted blocks are verified."""
        if self._lingering:
            self._submit_batch()
        self._batches_in.close()
        self._zeroing.cancel()

    # -- stages -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the stages until closed.

        Raises:
            StorageError: writing, flushing or reading failed, or a block failed read-back twice.
            ImageError: the image was packed wrongly.
            CastFailedError: the sender served a wrong block again and again.
        """
        limiter = trio.CapacityLimiter(self._writer_count)
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._verify_at_watermarks)
            self.check_progress()
            async with trio.open_nursery() as writers:
                for _ in range(self._writer_count):
                    writers.start_soon(self._write_batches, limiter)
            self._writing_done = True
            self._verify_due.set()
        self._nursery = None

    async def _write_batches(self, limiter: trio.CapacityLimiter) -> None:
        async for blocks in self._batches_out:
            outcomes = await self._image.threads.run_sync(
                self._image.write_blocks, blocks, self._session.cipher, limiter=limiter
            )
            for block, outcome in zip(blocks, outcomes, strict=True):
                if outcome is Outcome.WRONG:
                    self._reject_arrived(block)
                    continue
                self._session.release(block)
                self._session.block_written(block.block)
                if outcome is Outcome.WRITTEN:
                    self._written.append(block.block)
                else:
                    self._image.mark_held_back(block.block)
                    self.in_flight_count -= 1
            self._check_watermark()
            self.check_progress()

    def _reject_arrived(self, block: AssembledBlock) -> None:
        """Leave a wrong block to the session: members of the group can forge symbols, so it blames nobody."""
        number = block.block
        if block.fetched:
            self._wrong_fetches[number] += 1
            if self._wrong_fetches[number] >= WRONG_FETCHES_MAX:
                raise CastFailedError(
                    f"the sender served block {number} {WRONG_FETCHES_MAX} times with content that doesn't match the "
                    "image's manifest: check the image file at the sender with diskcast verify"
                )
        self.in_flight_count -= 1
        self._session.block_poisoned(block, trio.current_time())
        self._on_rejected()

    def _reject_written(self, block: int) -> None:
        self.in_flight_count -= 1
        self._session.block_rejected(block, trio.current_time())
        self._on_rejected()

    def _check_watermark(self) -> None:
        manifest = self._image.manifest
        assert manifest is not None
        written_bytes = len(self._written) * manifest.block_bytes
        left_bytes = self._image.needed_count * manifest.block_bytes
        watermark_bytes = min(VERIFY_BYTES, max(VERIFY_BYTES_MIN, left_bytes // 4))
        if written_bytes >= watermark_bytes or 0 < len(self._written) == self._image.needed_count:
            self._verify_due.set()

    async def _verify_at_watermarks(self) -> None:
        while self._written or not self._writing_done:
            with trio.move_on_after(VERIFY_INTERVAL_S):
                await self._verify_due.wait()
            self._verify_due = trio.Event()
            if self._written:
                await self._verify_written()

    async def _verify_written(self) -> None:
        blocks = np.sort(np.array(self._written, np.int64))
        self._written.clear()
        wrong = await self._image.threads.run_sync(self._image.sync_and_verify, blocks)
        right = np.setdiff1d(blocks, wrong, assume_unique=True) if wrong.size else blocks
        self._session.blocks_verified(right)
        self._image.mark_verified(right)
        self.in_flight_count -= int(right.size)
        for block in wrong.tolist():
            self._count_read_back_failure(block)
            self._reject_written(block)
        # The last blocks may have been written during this verification, and nothing else would start theirs.
        self._check_watermark()
        self.check_progress()

    async def zero_blocks(self) -> None:
        """Write the patch and the zero blocks that the target misses, concurrently with the other stages, until closed.

        Raises:
            StorageError: writing, flushing or reading failed, or a block failed read-back twice.
        """
        with self._zeroing:
            while self._image.patch_due:
                held, written, wrong = await self._image.threads.run_sync(self._image.patch_step)
                for block in wrong.tolist():
                    self._count_read_back_failure(block)
                if wrong.size == 0:
                    self._image.mark_patched(held, written)
            while True:
                while self._image.zeros_due:
                    blocks, wrong = await self._image.threads.run_sync(self._image.zero_step)
                    for block in wrong.tolist():
                        self._count_read_back_failure(block)
                    if wrong.size == 0:
                        self._image.mark_zeroed(blocks)
                self.check_progress()
                self._zeros_found = trio.Event()
                await self._zeros_found.wait()

    def _count_read_back_failure(self, block: int) -> None:
        self._read_back_failures[block] += 1
        self._image.blocks_rewritten_count += 1
        if self._read_back_failures[block] >= READ_BACK_FAILURES_MAX:
            assert self._image.manifest is not None
            raise read_back_error(self._image.target_path, self._image.manifest, block)

    def check_progress(self) -> None:
        """Start steps that have become due: zero blocks, commit once all else is verified, signal completion."""
        if self._image.zeros_due:
            self._zeros_found.set()
        if self._image.complete:
            self._on_complete()
        elif self._image.commit_due and not self._committing and self._nursery is not None:
            self._committing = True
            self._nursery.start_soon(self._commit)

    async def _commit(self) -> None:
        await self._image.threads.run_sync(self._image.commit)
        self._session.blocks_verified(self._image.mark_committed())
        self.check_progress()
