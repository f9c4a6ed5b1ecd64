"""Verification of blocks on a disk: they are read back past the page cache and compared with the manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import HASH_BYTES, MIB
from protocol.errors import StorageError
from protocol.image.block_codec import block_hash
from protocol.image.manifest import BlockKind, Manifest
from receiver.disk import syscalls
from receiver.disk.aligned_buffers import aligned_memory
from receiver.disk.block_runs import block_runs
from receiver.disk.read_back import ALIGNMENT_BYTES, ReadBack
from receiver.shared.parallel import run_parallel

READ_BYTES: Final = 4 * MIB
"""Size of one read. Measured on a virtio disk, reading and hashing on one thread into huge pages: 1 MiB 910 MB/s, 4 MiB
2220, 16 MiB 1980 (two threads: 1070, 2510, 2160; the disk alone 3060, ``dd`` with its small pages 1050)."""

UNREADABLE_COUNT_MAX: Final = 16
"""Unreadable blocks to tolerate before they are written: each costs up to three times half a minute, and a disk with
more of them is dying."""


class Verifier:
    """A comparison of a target's blocks with a manifest. Thread-safe.

    Memory: one buffer of ``max(READ_BYTES, block_bytes)`` (4 MiB) for each concurrent read, kept for the next one.
    """

    def __init__(self, read_back: ReadBack, manifest: Manifest) -> None:
        self._read_back = read_back
        self._manifest = manifest
        self._blocks_per_read = max(1, READ_BYTES // manifest.block_bytes)
        self._free_buffers: list[NDArray[np.uint8]] = []
        self._unreadable: set[int] = set()

    def verify_blocks(self, blocks: NDArray[np.int64], *, threads: int = 1) -> NDArray[np.int64]:
        """Return those of ``blocks`` (ascending, distinct) that differ from the manifest; unused ones never do.

        Flush earlier writes first. A hole in a file is zeros by definition and isn't read.

        Args:
            blocks: block numbers.
            threads: number of threads that read and hash; with one, the disk idles while it hashes.

        Returns:
            Block numbers, ascending.

        Raises:
            StorageError: the disk can't be read.
        """
        kind = self._manifest.kind[blocks]
        if self._read_back.is_device:
            to_read = blocks[kind != BlockKind.UNUSED]
        else:
            zeros = blocks[kind == BlockKind.ZERO]
            stops = np.minimum((zeros + 1) * self._manifest.block_bytes, self._manifest.raw_bytes)
            inside = (
                stops <= os.fstat(self._read_back.fd).st_size
            )  # a block beyond the end is missing, not a hole
            data_runs = [np.arange(first, stop) for first, stop in self._zeros_with_data(zeros[inside])]
            to_read = np.sort(np.concatenate([blocks[kind <= BlockKind.RAW], zeros[~inside], *data_runs]))
        mismatching: list[int] = []

        def verify_run(run: tuple[int, int]) -> int:
            buffer = self._take_buffer()
            mismatching.extend(self._verify_run(*run, buffer))
            self._free_buffers.append(buffer)
            return 1

        runs = block_runs(to_read, self._blocks_per_read)
        if threads == 1:
            for run in runs:
                verify_run(run)
        else:
            run_parallel(runs, verify_run, threads=threads, on_progress=lambda _count: None)
        return np.sort(np.array(mismatching, np.int64))

    def missing_blocks(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of ``blocks`` (ascending, distinct) that the target doesn't hold, before anything is written.

        Unreadable blocks count as missing: writing a sector often repairs it, and read-back decides. They are found by
        ever smaller reads.

        Raises:
            StorageError: more than :data:`UNREADABLE_COUNT_MAX` blocks can't be read.
        """
        try:
            return self.verify_blocks(blocks)
        except StorageError:
            if blocks.size == 1:
                self._unreadable.add(int(blocks[0]))
                if len(self._unreadable) > UNREADABLE_COUNT_MAX:
                    raise
                return blocks
        runs = list(block_runs(blocks, self._blocks_per_read))
        parts = (
            [np.arange(first, stop) for first, stop in runs]
            if len(runs) > 1
            else np.split(blocks, blocks.size)
        )
        return np.concatenate([self.missing_blocks(part) for part in parts])

    def read_block(self, block: int, into: memoryview) -> int:
        """Read a block past the page cache without comparing it; flush earlier writes first.

        Args:
            block: block number.
            into: buffer for its ``manifest.raw_length(block)`` bytes, aligned or not.

        Returns:
            Bytes read, less than the block only at the end of the target.

        Raises:
            StorageError: the disk can't be read.
        """
        length = self._manifest.raw_length(block)
        buffer = self._take_buffer()
        count = min(self._read_run(block, length, buffer), length)
        into[:count] = buffer.data[:count]
        self._free_buffers.append(buffer)
        return count

    def _take_buffer(self) -> NDArray[np.uint8]:
        try:
            return self._free_buffers.pop()
        except IndexError:
            return np.frombuffer(aligned_memory(self._blocks_per_read * self._manifest.block_bytes), np.uint8)

    def _read_run(self, first: int, length: int, buffer: NDArray[np.uint8]) -> int:
        aligned_length = -(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return self._read_back.read_into(buffer.data[:aligned_length], first * self._manifest.block_bytes)

    def _verify_run(self, first: int, stop: int, buffer: NDArray[np.uint8]) -> Iterator[int]:
        manifest, block_bytes = self._manifest, self._manifest.block_bytes
        length = min(stop * block_bytes, manifest.raw_bytes) - first * block_bytes
        count = self._read_run(first, length, buffer)
        digests = manifest.raw_hash[first:stop].tobytes()
        expected = [digests[at : at + HASH_BYTES] for at in range(0, len(digests), HASH_BYTES)]
        for index, block in enumerate(range(first, stop)):
            start, end = index * block_bytes, min((index + 1) * block_bytes, length)
            if end > count:
                yield block
            elif manifest.kind[block] == BlockKind.ZERO:
                # Ten times faster than hashing.
                if buffer[start:end].max() != 0:
                    yield block
            elif block_hash(buffer.data[start:end]) != expected[index]:
                yield block

    def _zeros_with_data(self, zeros: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Return runs of the zero blocks that aren't entirely holes in the file."""
        fd, block_bytes = self._read_back.fd, self._manifest.block_bytes
        for first, stop in block_runs(zeros):
            position = first * block_bytes
            while position < stop * block_bytes:
                data = syscalls.next_data(fd, position)
                if data is None or data >= stop * block_bytes:
                    break
                hole = syscalls.next_hole(fd, data)
                data_stop = min(-(-hole // block_bytes), stop)
                yield data // block_bytes, data_stop
                position = data_stop * block_bytes
