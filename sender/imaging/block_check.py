"""Check of stored blocks against both hashes of their rows, by several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from protocol.constants import HASH_BYTES
from protocol.control.capture_messages import BlockGeometry, BlockRows
from protocol.errors import ImageDamagedError
from protocol.image.block_codec import BlockDecoder, block_hash
from protocol.image.manifest import BlockKind

_THREADS_MAX: Final = 4
"""Decompression and hashing of one gigabit per second take less than one CPU."""


class BlockChecker:
    """A checker with its own threads. Thread-safe."""

    def __init__(self) -> None:
        self._thread_count = min(_THREADS_MAX, len(os.sched_getaffinity(0)))
        self._executor = ThreadPoolExecutor(self._thread_count, thread_name_prefix="block-check")
        self._local = threading.local()

    def close(self) -> None:
        """Stop the threads."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def good_count(
        self, rows: BlockRows, payload: Sequence[bytes | memoryview], geometry: BlockGeometry
    ) -> int:
        """Return how many stored blocks of ``rows`` are good, from the first on.

        Args:
            rows: rows, checked against their kinds.
            payload: stored bytes of their blocks, in order; fewer if the rest is missing.
            geometry: the disk.
        """
        stored = rows.stored[: len(payload)]
        work = [(int(index), part) for index, part in zip(stored, payload, strict=True)]
        step = -(-len(work) // self._thread_count) or 1
        slices = [work[first : first + step] for first in range(0, len(work), step)]
        good = 0
        for found, part in zip(
            self._executor.map(lambda each: self._count(rows, each, geometry), slices), slices, strict=True
        ):
            good += found
            if found < len(part):
                break
        return good

    def _count(
        self, rows: BlockRows, work: Sequence[tuple[int, bytes | memoryview]], geometry: BlockGeometry
    ) -> int:
        decoder: BlockDecoder | None = getattr(self._local, "decoder", None)
        if decoder is None:
            decoder = self._local.decoder = BlockDecoder()
        # One buffer for all blocks: memory for each would come from the kernel, which zeroes it, and go back.
        buffer = memoryview(bytearray(geometry.block_bytes))
        for count, (index, stored) in enumerate(work):
            hashes = slice(HASH_BYTES * index, HASH_BYTES * (index + 1))
            if block_hash(stored) != rows.stored_hash[hashes]:
                return count
            if rows.kind[index] == BlockKind.DATA:
                try:
                    raw_length = geometry.raw_length(rows.first_block + index)
                    raw = buffer[:raw_length]
                    decoder.decode_into_untrusted(BlockKind.DATA, stored, raw)
                except ImageDamagedError:
                    return count
                if block_hash(raw) != rows.raw_hash[hashes]:
                    return count
        return len(work)
