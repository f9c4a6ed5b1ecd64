"""Restoring an image file to a disk of this machine, and comparing a disk with an image, without a network."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import MIB
from protocol.errors import ImageDamagedError, VerificationError
from protocol.image.manifest import BlockKind, Manifest
from protocol.patch.effective_manifest import effective_manifest
from protocol.patch.machine_patch import MachinePatch
from protocol.shared.units import format_bytes, format_duration
from receiver.disk.commit import READ_BACK_FAILURES_MAX, read_back_error
from receiver.disk.fit.fit_target import check_fit, fit
from receiver.disk.queue_settings import tuned_queue
from receiver.disk.read_back import open_for_comparison
from receiver.disk.verifier import READ_BYTES, Verifier
from receiver.restore.disk_progress import Difference, DiskProgress
from receiver.restore.image_source import ImageSource, open_image
from receiver.restore.patched_image import BlockSource, PatchChoice, PatchedImage, patch_fields, read_patch
from receiver.shared.parallel import run_parallel, thread_count
from receiver.target.block_sink import BlockSink, Outcome
from receiver.target.dry_run import dry_run
from receiver.target.options import DEFAULTS, TargetOptions, open_chosen

_WRITE_STEP_BYTES: Final = 4 * MIB
"""Raw bytes that a thread writes in one step: long enough to be sequential for the disk."""
_VERIFY_STEP_BYTES: Final = 4 * READ_BYTES
_ZERO_STEP_BYTES: Final = 256 * MIB
DIFFERENCES_SHOWN_MAX: Final = 10


def restore(
    image_path: Path,
    selector: str | Path,
    progress: DiskProgress,
    options: TargetOptions = DEFAULTS,
    patch_choice: PatchChoice | None = None,
) -> None:
    """Write an image to a file or block device, flush it, read everything back and compare it.

    Args:
        image_path: the image.
        selector: the target, as in ``--target``.
        progress: shows the progress and the result.
        options: see :class:`TargetOptions`.
        patch_choice: a machine patch to write with the image; None for the image alone.

    Raises:
        ImageError: the image can't be used, or one of its blocks is damaged.
        TrustError: the patch, or the image with it, is refused; the target wasn't opened.
        TargetError: the target can't be used; nothing was written.
        StorageError: writing failed, or the target read back wrong; it is incomplete.
        FitError: the image is on the target, but couldn't be fitted to it.
    """
    with open_image(image_path) as image:
        patch = None if patch_choice is None else patch_choice.permitted(image)
        restore_opened(image, selector, progress, options, image_path=image_path, patch=patch)


def restore_opened(
    image: ImageSource,
    selector: str | Path,
    progress: DiskProgress,
    options: TargetOptions = DEFAULTS,
    *,
    image_path: Path | None = None,
    patch: MachinePatch | None = None,
) -> None:
    """Write an opened image as :func:`restore` does.

    Args:
        image: the image.
        selector: the target, as in ``--target``.
        progress: shows the progress and the result.
        options: see :class:`TargetOptions`.
        image_path: the image's file, if it is on this machine.
        patch: a permitted machine patch.
    """
    started_s = time.monotonic()
    source: BlockSource = image if patch is None else PatchedImage(image, patch)
    manifest = source.manifest
    with (
        open_chosen(selector, options, raw_bytes=manifest.raw_bytes, image_path=image_path) as target,
        tuned_queue(target),
        BlockSink(target, manifest) as sink,
    ):
        if options.dry_run:
            progress.start_phase("scan", manifest.raw_bytes)
            found = dry_run(target, manifest, options, progress.advance)
            progress.result({"dry_run": True, **dataclasses.asdict(found)}, found.text())
            return
        check_fit(options.fit, target, manifest)
        sink.prepare()
        missing = _missing_blocks(manifest, sink, progress, options)
        _write(source, sink, missing, progress)
        progress.start_phase("flush", sink.bytes_written)
        sink.sync()
        progress.advance(sink.bytes_written)
        written = np.setdiff1d(missing, sink.commit_last.blocks, assume_unique=True)
        rewritten_count = _verify_written(source, sink, written, progress)
        sink.commit(reread=rewritten_count > 0)
        fitted = fit(target, manifest, options.fit)
        mode = target.readback_mode
        kept_bytes = manifest.raw_bytes_of(_used_blocks(manifest)) - manifest.raw_bytes_of(missing)
        seconds = time.monotonic() - started_s
        customised = "" if patch is None else f", customised for {patch.machine_id},"
        outcome = (
            f"{manifest.name} ({format_bytes(manifest.raw_bytes)}){customised} is on {target.path}, every byte "
            f"read back and verified, after {format_duration(seconds)}; {format_bytes(kept_bytes)} were there already"
        )
        progress.result(
            {
                "image_id": manifest.image_id.hex(),
                "image_name": manifest.name,
                **patch_fields(patch),
                "target": str(target.path),
                "raw_bytes": manifest.raw_bytes,
                "raw_bytes_kept": kept_bytes,
                "bytes_written": sink.bytes_written,
                "blocks_rewritten": rewritten_count + sink.commit_last.rewritten_count,
                "readback_mode": mode.value,
                "fitted": fitted,
                "seconds": round(seconds, 3),
            },
            "\n".join([outcome, *fitted]),
        )


def _used_blocks(manifest: Manifest) -> NDArray[np.int64]:
    return np.flatnonzero(manifest.kind != BlockKind.UNUSED)


def _missing_blocks(
    manifest: Manifest, sink: BlockSink, progress: DiskProgress, options: TargetOptions
) -> NDArray[np.int64]:
    """Return the blocks that the target misses, ascending; all used blocks if a scan isn't worthwhile."""
    if not options.scans or not sink.worth_scanning(random.Random()):
        return _used_blocks(manifest)
    # Blocks that are committed last are read only once: those not kept in memory must be written in any case.
    last = sink.commit_last.blocks[manifest.are_stored(sink.commit_last.blocks)]
    missing_last = np.setdiff1d(last, sink.commit_last.keep_matching(), assume_unique=True)
    others = np.setdiff1d(_used_blocks(manifest), last, assume_unique=True)
    return np.union1d(missing_last, _verify_all(manifest, others, sink.missing, progress, "scan"))


def compare(
    image_path: Path, target_path: Path, progress: DiskProgress, patch_path: Path | None = None
) -> None:
    """Read a file or block device and compare it with an image, or one with a patch; nothing is written.

    Raises:
        ImageError: the image can't be used.
        PatchRefusedError: the patch is damaged, or for another image.
        TargetTooSmallError: the target is smaller than the image.
        TargetError: the target can't be read.
        VerificationError: they differ; the message names the first block, ``progress`` has shown the first few.
    """
    started_s = time.monotonic()
    with (
        open_image(image_path) as image,
        open_for_comparison(target_path, image.manifest.raw_bytes) as read_back,
    ):
        patch = None if patch_path is None else read_patch(patch_path)
        manifest = image.manifest if patch is None else effective_manifest(image.manifest, patch)
        customised = "" if patch is None else f" with the patch of {patch.machine_id}"
        verifier = Verifier(read_back, manifest)
        blocks = _used_blocks(manifest)
        mismatching = _verify_all(manifest, blocks, verifier.verify_blocks, progress, "compare")
        if mismatching.size:
            _show_differences(manifest, mismatching, progress)
            raise VerificationError(
                f"{target_path} differs from {manifest.name}{customised} in {mismatching.size} of {blocks.size} "
                f"blocks, first in {_place(manifest, int(mismatching[0]))}: restore the image to fix it"
            )
        seconds = time.monotonic() - started_s
        progress.result(
            {
                "image_id": manifest.image_id.hex(),
                "image_name": manifest.name,
                **patch_fields(patch),
                "target": str(target_path),
                "target_bytes": read_back.size_bytes,
                "raw_bytes": manifest.raw_bytes,
                "blocks_compared": int(blocks.size),
                "readback_mode": read_back.mode.value,
                "seconds": round(seconds, 3),
            },
            f"{target_path} holds {manifest.name}{customised} ({format_bytes(manifest.raw_bytes)}), compared in "
            f"{format_duration(seconds)}",
        )


def _write(image: BlockSource, sink: BlockSink, blocks: NDArray[np.int64], progress: DiskProgress) -> None:
    manifest = image.manifest

    def zero(step: NDArray[np.int64]) -> int:
        sink.zero(step)
        return manifest.raw_bytes_of(step)

    def write(step: NDArray[np.int64]) -> int:
        buffer = memoryview(bytearray(int(manifest.stored_bytes[step].sum(dtype=np.int64))))
        return _write_step(image, sink, step, buffer)

    zeros = blocks[(manifest.kind[blocks] == BlockKind.ZERO) & (blocks > 0)]  # block 0 is committed last
    progress.start_phase("zero", manifest.raw_bytes_of(zeros))
    # One thread: the device or the filesystem does the work.
    run_parallel(_steps(manifest, zeros, _ZERO_STEP_BYTES), zero, threads=1, on_progress=progress.advance)
    stored = blocks[manifest.are_stored(blocks)]
    progress.start_phase("write", manifest.raw_bytes_of(stored))
    steps = _steps(manifest, stored, _WRITE_STEP_BYTES)
    run_parallel(steps, write, threads=thread_count(), on_progress=progress.advance)


def _write_step(image: BlockSource, sink: BlockSink, blocks: NDArray[np.int64], buffer: memoryview) -> int:
    manifest, stored, end = image.manifest, [], 0
    for block in blocks.tolist():
        view = image.read_stored(block, buffer[end:])
        stored.append((block, view))
        end += len(view)
    for block, outcome in zip(blocks.tolist(), sink.write_blocks(stored), strict=True):
        if outcome is Outcome.WRONG:
            raise ImageDamagedError(
                f"{image.name}: {_place(manifest, block)} was altered: its stored bytes don't match its hash; copy "
                f"the image again; {sink.target.path} is incomplete"
            )
    return manifest.raw_bytes_of(blocks)


def _verify_all(
    manifest: Manifest,
    blocks: NDArray[np.int64],
    verify: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    progress: DiskProgress,
    phase: str,
) -> NDArray[np.int64]:
    """Return those of ``blocks`` that ``verify`` finds different, ascending."""
    mismatching: list[NDArray[np.int64]] = [np.empty(0, np.int64)]

    def work(step: NDArray[np.int64]) -> int:
        mismatching.append(verify(step))
        return manifest.raw_bytes_of(step)

    progress.start_phase(phase, manifest.raw_bytes_of(blocks))
    steps = _steps(manifest, blocks, _VERIFY_STEP_BYTES)
    run_parallel(steps, work, threads=thread_count(), on_progress=progress.advance)
    return np.sort(np.concatenate(mismatching))


def _verify_written(
    image: BlockSource, sink: BlockSink, blocks: NDArray[np.int64], progress: DiskProgress
) -> int:
    """Read back the flushed blocks, write wrong ones again, and return the number of rewritten blocks.

    Raises:
        VerificationError: a block read back wrong again.
        ImageDamagedError: the disk is right, but the image contradicts itself.
    """
    manifest, rewritten_count = image.manifest, 0
    for failure_count in range(READ_BACK_FAILURES_MAX):
        if failure_count:
            rewritten_count += int(blocks.size)
            _write(image, sink, blocks, progress)
            sink.sync()
        blocks = _verify_all(manifest, blocks, sink.verify, progress, "verify")
        if blocks.size == 0:
            return rewritten_count
        _require_consistent(image, sink, int(blocks[0]))
    _show_differences(manifest, blocks, progress)
    raise read_back_error(sink.target.path, manifest, int(blocks[0]))


def _require_consistent(image: BlockSource, sink: BlockSink, block: int) -> None:
    """Raise if a block read back wrong because the image contradicts itself, not because of the disk."""
    if image.manifest.kind[block] <= BlockKind.RAW:
        buffer = memoryview(bytearray(image.manifest.block_bytes))
        sink.require_raw_hash(block, image.read_stored(block, buffer))


def _show_differences(manifest: Manifest, mismatching: NDArray[np.int64], progress: DiskProgress) -> None:
    first = [
        Difference(block, block * manifest.block_bytes, manifest.raw_length(block))
        for block in mismatching[:DIFFERENCES_SHOWN_MAX].tolist()
    ]
    progress.differences(int(mismatching.size), first)


def _place(manifest: Manifest, block: int) -> str:
    return f"block {block} (byte {block * manifest.block_bytes})"


def _steps(manifest: Manifest, blocks: NDArray[np.int64], step_bytes: int) -> Iterator[NDArray[np.int64]]:
    count = max(1, step_bytes // manifest.block_bytes)
    for start in range(0, blocks.size, count):
        yield blocks[start : start + count]
