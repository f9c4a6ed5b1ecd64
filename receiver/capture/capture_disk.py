"""One capture on this machine: claim the disk, upload it, prove it, commit the image.

Everything here blocks, and runs in one thread beside the agent's event loop; packing has threads of its own, and so
have batches on the way. After any
failure of the network, the daemon or this program the upload continues at the block that the daemon names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from protocol.constants import MIB
from protocol.control.capture_messages import (
    UPLOADER_BYTES,
    BlockRows,
    CaptureAssignment,
    CaptureEnd,
    CaptureFailure,
    CapturePosition,
    CaptureStart,
    ProofBatch,
    SpanAnswer,
    SpanBatch,
)
from protocol.errors import CaptureFailedError, DiskcastError, SourceUncleanError
from protocol.image.block_codec import encoder_memory_bytes
from protocol.packing.image_start import ImageStart
from protocol.packing.ordered_pipeline import SPAN_BYTES, job_count, ordered_map
from protocol.packing.source import Source
from protocol.packing.source_hash import SourceHash
from protocol.packing.span_packer import SpanPacker
from protocol.packing.used_blocks import NO_UNUSED, UnusedBlocks, find_unused_blocks
from receiver.capture.batch_builder import BatchBuilder
from receiver.capture.claimed_source import ChosenDisk, choose_source, claimed
from receiver.capture.proof import proof_rows
from receiver.capture.upload_client import OutOfStep, SecretReplaced, UploadClient
from receiver.capture.upload_window import UploadWindow
from receiver.reception.network.http_client import Unreachable

_Result = TypeVar("_Result")

_PACKING_BYTES_MAX: Final = 128 * MIB
"""Memory of the packing threads, within the agent's 300 MB: 70 MB are the program's, 20 to 40 MiB five batches."""
_RETRY_FIRST_S: Final = 0.2
_RETRY_MAX_S: Final = 10.0


class CapturePhase(enum.StrEnum):
    """The phase of a capture."""

    WAITING = "waiting"
    """The daemon doesn't answer, or other captures run."""
    UPLOADING = "uploading"
    PROVING = "proving"


@dataclasses.dataclass(frozen=True, slots=True)
class CaptureProgress:
    """The progress of a capture.

    Attributes:
        done_bytes: bytes of the disk that are uploaded, or proven in that phase.
        sent_bytes: stored bytes that the network has carried.
        reason: the reason for waiting.
    """

    phase: CapturePhase
    done_bytes: int
    raw_bytes: int
    sent_bytes: int
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class CapturedImage:
    """The result of a capture.

    Attributes:
        sent_bytes: stored bytes that this run sent; the rest was in the library or sent before.
    """

    image_id: bytes
    raw_bytes: int
    sent_bytes: int
    seconds: float


class CaptureStopped(Exception):  # noqa: N818 - not an error: the agent's own wish
    """The agent stops, or no longer has the secret; the capture continues later."""


def packing_job_count(level: int, block_bytes: int) -> int:
    """Return the number of packing threads for the agent's memory: two spans, packed and not, and an encoder each."""
    each_bytes = 4 * SPAN_BYTES + encoder_memory_bytes(level, block_bytes)
    return min(job_count(None), max(1, _PACKING_BYTES_MAX // each_bytes))


class DiskCapture:
    """A capture; :meth:`run` once, in a thread."""

    def __init__(
        self,
        client: UploadClient,
        assignment: CaptureAssignment,
        target: str,
        on_progress: Callable[[CaptureProgress], None],
    ) -> None:
        """Args:
        client: uploads to the daemon that assigned the capture.
        assignment: the capture.
        target: the agent's own target, see :func:`choose_source`.
        on_progress: called in the thread of :meth:`run`, and in those of batches that wait for the daemon.
        """
        self._client = client
        self._assignment = assignment
        self._target = target
        self._on_progress = on_progress
        self._stop = threading.Event()
        self._uploader = b""
        self._sequence = 0
        self._raw_bytes = 0
        self._sent_bytes = 0
        self._progress = CaptureProgress(CapturePhase.WAITING, 0, 0, 0)

    def stop(self) -> None:
        """Let :meth:`run` return soon; may be called from any thread."""
        self._stop.set()

    def run(self) -> CapturedImage:
        """Make the capture, retrying until the daemon answers.

        Raises:
            CaptureStopped: :meth:`stop` was called, or the secret is no longer valid.
            CaptureFailedError: the capture was cancelled, or the daemon can't keep it.
            DiskcastError: this machine can't make it; the daemon knows the reason.
        """
        started_at = time.monotonic()
        try:
            with contextlib.ExitStack() as stack:
                disk = choose_source(self._assignment.source, self._target)
                stack.enter_context(claimed(disk.path))
                image_id = self._capture(disk, stack.enter_context(Source(disk.path)))
        except CaptureFailedError:
            raise
        except DiskcastError as error:
            failure = CaptureFailure(str(error), error.exit_code)
            with contextlib.suppress(CaptureFailedError, SecretReplaced, OutOfStep):
                self._retried(functools.partial(self._client.report_failure, failure))
            raise
        except SecretReplaced as error:
            raise CaptureStopped(str(error)) from error
        return CapturedImage(image_id, self._raw_bytes, self._sent_bytes, time.monotonic() - started_at)

    def _capture(self, disk: ChosenDisk, source: Source) -> bytes:
        plan = self._assignment
        start = ImageStart.of(source, plan.name, plan.block_bytes, every_byte=plan.every_byte)
        self._raw_bytes = source.raw_bytes
        unused = self._find_unused(source, start)
        while True:
            self._uploader = secrets.token_bytes(UPLOADER_BYTES)
            message = CaptureStart(
                self._uploader, str(disk.path), disk.model, disk.serial, start.manifest_start
            )
            try:
                position = self._retried(functools.partial(self._client.start, message))
                self._sequence = 0
                self._upload(source, unused, position)
                digest = self._prove(source, start)
                end = CaptureEnd(self._uploader, digest)
                return self._retried(functools.partial(self._client.commit, end)).image_id
            except OutOfStep as error:
                self._wait(_RETRY_FIRST_S, str(error))

    def _find_unused(self, source: Source, start: ImageStart) -> UnusedBlocks:
        """Return the blocks that no filesystem uses.

        Raises:
            SourceUncleanError: a filesystem wasn't unmounted cleanly: an image of it would need a repair at each use.
        """
        if self._assignment.every_byte:
            return NO_UNUSED
        unused = find_unused_blocks(source, start.disk_layout, start.block_bytes)
        for area in unused.areas:
            if area.unclean:
                place = f"partition {area.number}" if area.number else "the disk"
                raise SourceUncleanError(
                    f"{source.path}: the {area.filesystem} filesystem on {place} can't be captured: {area.kept_because}"
                )
        return unused

    def _packer(self, source: Source, unused: UnusedBlocks) -> SpanPacker:
        plan = self._assignment
        return SpanPacker(
            source,
            unused.ranges,
            block_bytes=plan.block_bytes,
            level=plan.level,
            every_byte=plan.every_byte,
        )

    # -- upload -----------------------------------------------------------------------------------------------

    def _upload(self, source: Source, unused: UnusedBlocks, position: CapturePosition) -> None:
        """Send all blocks from the position on."""
        packer = self._packer(source, unused)
        jobs = packing_job_count(self._assignment.level, self._assignment.block_bytes)
        spans = packer.spans(position.next_block)
        window = UploadWindow(self._send, self._note_sent)
        with contextlib.closing(ordered_map(packer.work, spans, jobs=jobs)) as results:
            builder = BatchBuilder(time.monotonic())
            for packed in results:
                if not builder.fits(packed):
                    window.add(builder.build())
                    builder = BatchBuilder(time.monotonic())
                builder.add(packed)
                start, stop = packer.raw_range(packed.span)
                if packed.span.empty_kind is None:
                    source.forget(start, stop - start)
                if builder.is_due(time.monotonic()):
                    window.add(builder.build())
                    builder = BatchBuilder(time.monotonic())
            if not builder.is_empty:
                window.add(builder.build())
        window.finish()
        self._sequence = window.sequence

    def _send(self, sequence: int, rows: BlockRows, payload: Sequence[bytes]) -> SpanAnswer:
        """Send a batch; in a thread of its own."""
        head = SpanBatch.head(self._uploader, sequence, rows, sum(map(len, payload)))
        return self._retried(functools.partial(self._client.send_spans, head, payload))

    def _note_sent(self, block: int, stored_bytes: int) -> None:
        self._sent_bytes += stored_bytes
        self._report(CapturePhase.UPLOADING, min(self._raw_bytes, block * self._assignment.block_bytes))

    # -- proof ------------------------------------------------------------------------------------------------

    def _prove(self, source: Source, start: ImageStart) -> bytes:
        """Read the disk again and send its hashes; return the digest of the whole disk, if every byte is kept."""
        source_hash = SourceHash() if self._assignment.every_byte else None
        packer = self._packer(source, self._find_unused(source, start))
        jobs = packing_job_count(self._assignment.level, self._assignment.block_bytes)
        block_bytes = self._assignment.block_bytes
        rows_of_all = proof_rows(source, packer, block_bytes, jobs=jobs, source_hash=source_hash)
        with contextlib.closing(rows_of_all):
            for rows in rows_of_all:
                batch = ProofBatch(self._uploader, self._sequence, rows.first_block, rows.kind, rows.raw_hash)
                position = self._retried(functools.partial(self._client.send_proof, batch))
                self._sequence += 1
                self._report(CapturePhase.PROVING, min(self._raw_bytes, position.proven_block * block_bytes))
        source.check_unchanged()
        return b"" if source_hash is None else source_hash.digest()

    # -- details ----------------------------------------------------------------------------------------------

    def _retried(self, exchange: Callable[[], _Result]) -> _Result:
        """Repeat an exchange until the daemon answers."""
        pause_s = _RETRY_FIRST_S
        while True:
            self._check_stop()
            try:
                return exchange()
            except Unreachable as error:
                self._wait(pause_s * random.uniform(0.5, 1.0), str(error))
                pause_s = min(2 * pause_s, _RETRY_MAX_S)

    def _wait(self, pause_s: float, reason: str) -> None:
        self._on_progress(dataclasses.replace(self._progress, phase=CapturePhase.WAITING, reason=reason))
        self._stop.wait(pause_s)
        self._check_stop()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise CaptureStopped("the agent stops")

    def _report(self, phase: CapturePhase, done_bytes: int) -> None:
        self._progress = CaptureProgress(phase, done_bytes, self._raw_bytes, self._sent_bytes)
        self._on_progress(self._progress)
