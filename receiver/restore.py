"""Restoring an image file to a disk of this machine, and comparing a disk with an image: no network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import MIB
from protocol.errors import DiskcastError, ImageDamagedError, VerificationError
from protocol.manifest import BlockKind, Manifest
from protocol.units import format_bytes, format_duration
from receiver.block_sink import BlockSink
from receiver.disk.read_back import open_for_comparison
from receiver.disk.verifier import READ_BYTES, Verifier
from receiver.disk_progress import Difference, DiskProgress
from receiver.image_source import ImageSource, open_image
from receiver.parallel import run_parallel, thread_count
from receiver.target import open_target

_WRITE_STEP_BYTES: Final = 4 * MIB
"""Raw bytes that a thread takes on at once: long enough to be sequential for the disk."""
_VERIFY_STEP_BYTES: Final = 4 * READ_BYTES
_ZERO_STEP_BYTES: Final = 256 * MIB
DIFFERENCES_SHOWN_MAX: Final = 10


def restore(image_path: Path, target_path: Path, progress: DiskProgress) -> None:
    """Write an image to a file or block device, flush it, read everything back and compare it.

    Raises:
        ImageError: the image can't be used, or one of its blocks is damaged.
        TargetError: the target can't be used; nothing was written.
        StorageError: writing failed, or what was read back differs; the target is incomplete.
    """
    started_s = time.monotonic()
    with open_image(image_path) as image:
        manifest = image.manifest
        with open_target(target_path, raw_bytes=manifest.raw_bytes, image_path=image_path) as target:
            sink = BlockSink(target, manifest)
            sink.prepare()
            _write_all(image, sink, progress)
            progress.begin("flush", sink.bytes_written)
            sink.sync()
            progress.advance(sink.bytes_written)
            blocks = np.flatnonzero(manifest.kind != BlockKind.UNUSED)
            mismatching = _verify_all(manifest, blocks, sink.verify, progress, "verify")
            if mismatching.size:
                _show_differences(manifest, mismatching, progress)
                raise _blame(image, sink, mismatching)
            mode = target.readback_mode
        seconds = time.monotonic() - started_s
        progress.result(
            {
                "image_id": manifest.image_id.hex(),
                "image_name": manifest.name,
                "target": str(target_path),
                "raw_bytes": manifest.raw_bytes,
                "bytes_written": sink.bytes_written,
                "readback_mode": mode.value,
                "seconds": round(seconds, 3),
            },
            f"{manifest.name} ({format_bytes(manifest.raw_bytes)}) is on {target_path}, every byte read back and "
            f"verified, after {format_duration(seconds)}",
        )


def compare(image_path: Path, target_path: Path, progress: DiskProgress) -> None:
    """Read a file or block device and compare it with an image; nothing is written.

    Raises:
        ImageError: the image can't be used.
        TargetTooSmallError: the target is smaller than the image.
        TargetError: the target can't be read.
        VerificationError: they differ; the message names the first block, ``progress`` has shown the first ones.
    """
    started_s = time.monotonic()
    with (
        open_image(image_path) as image,
        open_for_comparison(target_path, image.manifest.raw_bytes) as read_back,
    ):
        manifest = image.manifest
        verifier = Verifier(read_back, manifest)
        blocks = np.flatnonzero(manifest.kind != BlockKind.UNUSED)
        mismatching = _verify_all(manifest, blocks, verifier.verify_blocks, progress, "compare")
        if mismatching.size:
            _show_differences(manifest, mismatching, progress)
            raise VerificationError(
                f"{target_path} differs from {manifest.name} in {mismatching.size} of {blocks.size} blocks, "
                f"first in {_place(manifest, int(mismatching[0]))}: restore it to mend that"
            )
        seconds = time.monotonic() - started_s
        progress.result(
            {
                "image_id": manifest.image_id.hex(),
                "image_name": manifest.name,
                "target": str(target_path),
                "target_bytes": read_back.size_bytes,
                "raw_bytes": manifest.raw_bytes,
                "blocks_compared": int(blocks.size),
                "readback_mode": read_back.mode.value,
                "seconds": round(seconds, 3),
            },
            f"{target_path} holds {manifest.name} ({format_bytes(manifest.raw_bytes)}), compared in "
            f"{format_duration(seconds)}",
        )


def _write_all(image: ImageSource, sink: BlockSink, progress: DiskProgress) -> None:
    manifest = image.manifest

    def zero(blocks: NDArray[np.int64]) -> int:
        sink.prepare_zero_runs(blocks)
        return _raw_bytes_of(manifest, blocks)

    def write(blocks: NDArray[np.int64]) -> int:
        buffer = memoryview(bytearray(int(manifest.stored_bytes[blocks].max())))
        return sum(_write_block(image, sink, block, buffer) for block in blocks.tolist())

    zeros = np.flatnonzero(manifest.kind == BlockKind.ZERO)
    progress.begin("zero", _raw_bytes_of(manifest, zeros))
    # One thread: the device or the filesystem does the work.
    run_parallel(_steps(manifest, zeros, _ZERO_STEP_BYTES), zero, threads=1, on_progress=progress.advance)
    stored = np.flatnonzero(manifest.stored_mask)
    progress.begin("write", _raw_bytes_of(manifest, stored))
    steps = _steps(manifest, stored, _WRITE_STEP_BYTES)
    run_parallel(steps, write, threads=thread_count(), on_progress=progress.advance)


def _write_block(image: ImageSource, sink: BlockSink, block: int, buffer: memoryview) -> int:
    written_bytes = sink.decode_and_write(block, image.read_stored(block, buffer))
    if written_bytes == 0:
        raise ImageDamagedError(
            f"{image.path}: {_place(image.manifest, block)} was altered: its stored bytes don't match its hash; copy "
            f"the image again. {sink.target.path} is incomplete"
        )
    return written_bytes


def _verify_all(
    manifest: Manifest,
    blocks: NDArray[np.int64],
    verify: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    progress: DiskProgress,
    phase: str,
) -> NDArray[np.int64]:
    """Those of ``blocks`` that ``verify`` finds different, ascending."""
    mismatching: list[NDArray[np.int64]] = [np.empty(0, np.int64)]

    def work(step: NDArray[np.int64]) -> int:
        mismatching.append(verify(step))
        return _raw_bytes_of(manifest, step)

    progress.begin(phase, _raw_bytes_of(manifest, blocks))
    steps = _steps(manifest, blocks, _VERIFY_STEP_BYTES)
    run_parallel(steps, work, threads=thread_count(), on_progress=progress.advance)
    return np.sort(np.concatenate(mismatching))


def _blame(image: ImageSource, sink: BlockSink, mismatching: NDArray[np.int64]) -> DiskcastError:
    """Why a restored target differs: an image that contradicts itself, or else a disk that doesn't keep its data."""
    manifest, block = image.manifest, int(mismatching[0])
    if manifest.stored_mask[block]:
        buffer = memoryview(bytearray(manifest.block_bytes))
        if not sink.has_raw_hash(block, image.read_stored(block, buffer)):
            return ImageDamagedError(
                f"{image.path}: {_place(manifest, block)} unpacks to something else than its raw hash says; pack the "
                f"image again. {sink.target.path} is incomplete"
            )
    return VerificationError(
        f"{sink.target.path}: {mismatching.size} of {manifest.block_count} blocks read back differ from what was "
        f"written, first {_place(manifest, block)}: something else wrote there, or the disk, its cable or this "
        "machine's memory is faulty; the target is incomplete"
    )


def _show_differences(manifest: Manifest, mismatching: NDArray[np.int64], progress: DiskProgress) -> None:
    first = [
        Difference(block, block * manifest.block_bytes, manifest.raw_length(block))
        for block in mismatching[:DIFFERENCES_SHOWN_MAX].tolist()
    ]
    progress.differences(int(mismatching.size), first)


def _place(manifest: Manifest, block: int) -> str:
    return f"block {block} (byte {block * manifest.block_bytes})"


def _raw_bytes_of(manifest: Manifest, blocks: NDArray[np.int64]) -> int:
    """Raw bytes of ascending ``blocks``; only the image's last one can be short."""
    if blocks.size == 0:
        return 0
    return int(blocks.size - 1) * manifest.block_bytes + manifest.raw_length(int(blocks[-1]))


def _steps(manifest: Manifest, blocks: NDArray[np.int64], step_bytes: int) -> Iterator[NDArray[np.int64]]:
    count = max(1, step_bytes // manifest.block_bytes)
    for start in range(0, blocks.size, count):
        yield blocks[start : start + count]
