"""The upload of one capture: batches in order, checked against both hashes, then the proof.

While batches arrive, threads check and write the one before, so that a session holds three. Only one uploader is
served: a batch carries the uploader's id and a sequence number, waits for those before it, and a repeated one gets the
answer that was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.control.capture_messages import (
    BATCHES_ON_THE_WAY,
    BlockRows,
    CapturePosition,
    ProofBatch,
    SpanAnswer,
    SpanBatch,
)
from protocol.errors import ImageDamagedError, ProtocolError
from protocol.image.manifest import BlockKind
from protocol.shared.units import format_bytes
from sender.daemon.captures.base_image import BaseImage
from sender.daemon.captures.upload_start import UploadStart
from sender.imaging.block_check import BlockChecker
from sender.imaging.resumable_image import ResumableImage
from sender.job_progress import JobProgress
from sender.metrics.image_job_metrics import (
    CAPTURE_REJECTED_BLOCKS,
    IMAGE_JOB_RECEIVED_BYTES,
    BlockRejection,
    ImageJobKind,
)
from sender.refusals import RequestRefusedError, conflict

UPLOADER_SILENT_S: Final = 30.0
"""Silence after which another uploader may take over with the same secret: an agent that crashed within a program that
kept the secret. An agent that starts again gets a new secret, and waits for nothing."""

_TURN_S: Final = 20.0
"""Time for which a batch waits for the one before it, which is repeated after a failure of its connection."""
_RECEIVED_AT_ONCE: Final = 2 * BATCHES_ON_THE_WAY
"""Batches of an upload that are received or wait for their turn: those on the way, and as many on connections that died
without a sign."""


class DiskChangedError(Exception):
    """The second read of the disk differs from the first."""


class UploadSession:
    """An upload. Not thread-safe: use it on the event loop.

    Attributes:
        geometry: the disk.
        start: the manifest before its columns, as the agent sent it.
        uploaded_bytes: stored bytes that arrived.
        kept_bytes: stored bytes that were copied from the base image.
        proven_block: first block that isn't proven.
        progress: of the first or the second read.
        image_id: id of the committed image; None before.
    """

    def __init__(
        self,
        image: ResumableImage,
        start: UploadStart,
        checker: BlockChecker,
        base: BaseImage | None,
        *,
        uploaded_bytes: int = 0,
    ) -> None:
        """Continue ``image``, whose position was recovered; close it and ``base`` by :meth:`close`."""
        self.geometry = start.geometry
        self.start = start.manifest_start
        self.uploaded_bytes = uploaded_bytes
        self.kept_bytes = 0
        self.proven_block = 0
        self.image_id: bytes | None = None
        self._image = image
        self._checker = checker
        self._base = base
        self._lock = asyncio.Lock()
        self._advanced = asyncio.Condition(self._lock)
        self._receiving = asyncio.Semaphore(_RECEIVED_AT_ONCE)
        self._uploader = b""
        self._secret_hash = ""
        self._heard_at = -UPLOADER_SILENT_S
        self.progress = JobProgress(start.geometry.raw_bytes)
        self._reset()

    def _reset(self) -> None:
        self._sequence = -1
        self._answers: dict[int, SpanAnswer | CapturePosition] = {}
        self._next_row = self._image.next_block
        self._pending: deque[tuple[BlockRows, NDArray[np.int64]]] = deque()
        self._writing: asyncio.Future[None] | None = None

    # -- state ------------------------------------------------------------------------------------------------

    @property
    def position(self) -> CapturePosition:
        """The blocks that are written, and those that are proven."""
        return CapturePosition(self._image.next_block, self.proven_block)

    @property
    def uploaded(self) -> bool:
        """Return whether all blocks are written."""
        return self._image.next_block == self.geometry.block_count

    @property
    def has_uploader(self) -> bool:
        """Return whether an agent has sent something recently."""
        return time.monotonic() - self._heard_at < UPLOADER_SILENT_S

    @property
    def done_bytes(self) -> int:
        """Bytes of the disk that are written, or proven once all are written."""
        block = self.proven_block if self.uploaded else self._image.next_block
        return min(self.geometry.raw_bytes, block * self.geometry.block_bytes)

    # -- the steps of an upload -------------------------------------------------------------------------------

    async def attach(self, uploader: bytes, secret_hash: str) -> CapturePosition:
        """Serve an uploader from now on.

        Raises:
            RequestRefusedError: another one is active (409).
            ImageDamagedError, StorageError: the last batch can't be kept.
        """
        other = uploader != self._uploader and secret_hash == self._secret_hash
        if other and time.monotonic() - self._heard_at < UPLOADER_SILENT_S:
            raise conflict("another uploader is active: only one agent makes a capture")
        async with self._lock:
            await self._written()
            self._uploader, self._secret_hash = uploader, secret_hash
            self._heard_at = time.monotonic()
            self.proven_block = 0
            self.progress.restart(self.geometry.raw_bytes, self.done_bytes)
            self._reset()
            self._advanced.notify_all()
            return self.position

    @contextlib.asynccontextmanager
    async def receiving(self) -> AsyncIterator[None]:
        """Wait until there is room for another batch, and hold it while the batch is read and taken."""
        async with self._receiving:
            yield

    async def take_spans(self, body: bytes) -> SpanAnswer:
        """Take the payload that was wanted, and the next rows; return those blocks of them that are wanted.

        Raises:
            ProtocolError: the batch is malformed.
            RequestRefusedError: it is from another uploader or out of step (409), or those before it are missing (503).
            ImageDamagedError: a block of an earlier batch doesn't have its hashes.
            StorageError: the disk is full or failed.
        """
        batch = SpanBatch.parse_untrusted(body, self.geometry)
        async with self._lock:
            await self._await_turn(batch.uploader, batch.sequence)
            repeated = self._check_step(batch.uploader, batch.sequence)
            if isinstance(repeated, SpanAnswer):
                return repeated
            if batch.rows.first_block != self._next_row:
                raise conflict(f"block {self._next_row} is next: start again")
            due = self._pending[0] if len(self._pending) == BATCHES_ON_THE_WAY else None
            parts = _wanted_parts(due, batch.payload)
            await self._written()
            if due is not None:
                rows, bases = self._pending.popleft()
                self._writing = asyncio.ensure_future(asyncio.to_thread(self._write, rows, bases, parts))
                self.uploaded_bytes += len(batch.payload)
                IMAGE_JOB_RECEIVED_BYTES.labels(ImageJobKind.CAPTURE.value).inc(len(batch.payload))
            bases = np.full(len(batch.rows.stored), -1, np.int64)
            if self._base is not None:
                bases = await asyncio.to_thread(self._base.find, batch.rows)
            self._pending.append((batch.rows, bases))
            self._next_row += len(batch.rows.kind)
            answer = SpanAnswer.of(bases < 0)
            if not any(len(rows.kind) for rows, _bases in self._pending):
                await self._written()
            self._advance(batch.sequence, answer)
            return answer

    async def take_proof(self, body: bytes) -> CapturePosition:
        """Compare hashes of the second read with the manifest.

        Raises:
            ProtocolError: the batch is malformed.
            RequestRefusedError: it is from another uploader, or out of step (409).
            DiskChangedError: the disk was changed since the first read.
            StorageError: the disk failed.
        """
        batch = ProofBatch.parse_untrusted(body, self.geometry)
        async with self._lock:
            repeated = self._check_step(batch.uploader, batch.sequence)
            if isinstance(repeated, CapturePosition):
                return repeated
            await self._written()
            if not self.uploaded or batch.first_block != self.proven_block:
                raise conflict("the proof isn't at this block: start again")
            stop = batch.first_block + len(batch.kind)
            rows = await asyncio.to_thread(self._image.read_rows, batch.first_block, stop)
            self._compare(rows, batch)
            self.proven_block = stop
            self._advance(batch.sequence, self.position)
            return self.position

    async def commit(self, uploader: bytes, start: bytes | None) -> bytes:
        """Complete the image; return its id. ``start`` replaces the manifest's start, with the digest of the disk.

        Raises:
            RequestRefusedError: the disk isn't proven, or another uploader asks (409).
            StorageError: the disk is full or failed.
        """
        async with self._lock:
            self._check_uploader(uploader)
            if self.proven_block != self.geometry.block_count:
                raise conflict(f"block {self.proven_block} isn't proven: start again")
            if self.image_id is None:
                self.image_id = await asyncio.to_thread(self._image.commit, start)
            return self.image_id

    async def close(self, *, discard: bool = False) -> None:
        """Close the files after the last batch was written; with ``discard`` remove the partial image."""
        async with self._lock:
            if self._writing is not None:
                await asyncio.wait([self._writing])
            if discard:
                self._image.discard()
            try:
                await asyncio.to_thread(self._image.__exit__, None, None, None)
            finally:
                if self._base is not None:
                    self._base.close()
                self._uploader = b""
                self._advanced.notify_all()

    # -- details ----------------------------------------------------------------------------------------------

    def _check_uploader(self, uploader: bytes) -> None:
        if uploader != self._uploader:
            raise conflict("another uploader has taken over, or the daemon was restarted: start again")
        self._heard_at = time.monotonic()

    async def _await_turn(self, uploader: bytes, sequence: int) -> None:
        """Wait for the batches before ``sequence``, which arrive on other connections; hold the lock."""

        def is_next() -> bool:
            ahead = sequence - self._sequence
            return uploader != self._uploader or not 1 < ahead <= BATCHES_ON_THE_WAY

        try:
            async with asyncio.timeout(_TURN_S):
                await self._advanced.wait_for(is_next)
        except TimeoutError:
            text = f"batch {self._sequence + 1} is missing: retry"
            raise RequestRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, text) from None

    def _advance(self, sequence: int, answer: SpanAnswer | CapturePosition) -> None:
        """Remember the answer to a batch, and let the next one have its turn."""
        self._sequence = sequence
        self._answers[sequence] = answer
        self._answers.pop(sequence - BATCHES_ON_THE_WAY, None)
        self.progress.note(self.done_bytes)
        self._advanced.notify_all()

    def _check_step(self, uploader: bytes, sequence: int) -> SpanAnswer | CapturePosition | None:
        """Return the answer to a repeated batch; None for the next one."""
        self._check_uploader(uploader)
        if sequence in self._answers:
            return self._answers[sequence]
        if sequence != self._sequence + 1:
            raise conflict(f"batch {self._sequence + 1} is next, not {sequence}: start again")
        return None

    async def _written(self) -> None:
        """Wait until the batch before is checked and written; raise its error."""
        if self._writing is not None:
            writing = self._writing
            await asyncio.shield(writing)
            if self._writing is writing:
                self._writing = None

    def _write(self, rows: BlockRows, bases: NDArray[np.int64], wanted: list[memoryview]) -> None:
        """Check and write a batch; in a thread."""
        arrived = iter(wanted)
        payload: list[bytes | memoryview] = []
        for block in bases.tolist():
            if block < 0:
                payload.append(next(arrived))
                continue
            assert self._base is not None
            payload.append(self._base.read(block))
            self.kept_bytes += len(payload[-1])
        good_count = self._checker.good_count(rows, payload, self.geometry)
        if good_count < len(payload):
            CAPTURE_REJECTED_BLOCKS.labels(BlockRejection.DAMAGED.value).inc()
            block = rows.first_block + int(rows.stored[good_count])
            raise ImageDamagedError(
                f"block {block} arrived without its hashes: check the memory of the machine and of this server"
            )
        self._image.append(rows, payload)

    def _compare(self, rows: BlockRows, batch: ProofBatch) -> None:
        has_data = rows.kind <= BlockKind.RAW
        kind = np.where(has_data, np.uint8(BlockKind.DATA), rows.kind)
        differs = kind != batch.kind
        if not differs.any():
            raw_hash = np.frombuffer(rows.raw_hash, np.uint8).reshape(-1, batch.raw_hash.shape[1])
            differs[np.flatnonzero(has_data)] = (raw_hash[has_data] != batch.raw_hash).any(axis=1)
        wrong = np.flatnonzero(differs)
        if len(wrong):
            CAPTURE_REJECTED_BLOCKS.labels(BlockRejection.CHANGED.value).inc(len(wrong))
            offset = (batch.first_block + int(wrong[0])) * self.geometry.block_bytes
            raise DiskChangedError(
                f"the disk changed while it was captured, first at offset {offset} "
                f"({format_bytes(offset)}): stop the program that writes to it, and capture again"
            )


def _wanted_parts(
    pending: tuple[BlockRows, NDArray[np.int64]] | None, payload: memoryview
) -> list[memoryview]:
    """Cut a payload into the blocks that the answer to a batch named.

    Raises:
        ProtocolError: it has another length.
    """
    lengths: list[int] = []
    if pending is not None:
        rows, bases = pending
        lengths = rows.stored_bytes[rows.stored][bases < 0].tolist()
    if sum(lengths) != len(payload):
        raise ProtocolError(f"batch: a payload of {len(payload)} bytes, {sum(lengths)} expected")
    parts, offset = [], 0
    for length in lengths:
        parts.append(payload[offset : offset + length])
        offset += length
    return parts
