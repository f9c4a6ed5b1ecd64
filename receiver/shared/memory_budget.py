"""The agent's memory budget: 300 MB, kept for large images by a smaller assembly pool.

::

    BASE        interpreter, receive slab, write and read-back buffers, blocks committed last
    assembly    blocks on their way to the disk, as configured (96 MiB)
    blocks      BLOCK_MEMORY_BYTES for each block of the image

Measured with 256 KiB blocks and a full assembly pool: 176 MB for a disk of 16 GiB, 239 MB for 1 TiB. Above 1.3 TiB the
pool shrinks. The 300 MB are reached at 2.3 TiB, or at 9.3 TiB with an image packed with ``--block-size 1MiB``.
"""

from __future__ import annotations

from typing import Final

from protocol.constants import ASSEMBLY_BYTES_DEFAULT, MIB

MEMORY_BYTES_MAX: Final = 300_000_000

BLOCK_MEMORY_BYTES: Final = 16
"""Memory for each block: manifest 5 (size and kind), target 3 (needed, unscanned, to be zeroed), session 2 (symbols,
stage), scan 2 (unreported, being reported), temporary masks 4. The manifest of a smaller disk is in memory as well: 64
more, 32 MiB at most."""

BASE_BYTES: Final = 110_000_000
"""75 MB measured, 25 MB of them buffers, and up to 32 MiB of blocks that are committed last."""

ASSEMBLY_BYTES_MIN: Final = 32 * MIB
"""128 blocks: enough for every writer and for the blocks under repair."""


def assembly_bytes_for(requested_bytes: int, block_count: int) -> int:
    """Return the size of the assembly pool for an image of ``block_count`` blocks.

    Blocks that need more memory than the default pool leaves for them reduce the pool. An operator who requests a
    larger pool gets it, beyond the 300 MB.
    """
    room_bytes = MEMORY_BYTES_MAX - BASE_BYTES - ASSEMBLY_BYTES_DEFAULT
    excess_bytes = max(0, block_count * BLOCK_MEMORY_BYTES - room_bytes)
    return max(min(requested_bytes, ASSEMBLY_BYTES_MIN), requested_bytes - excess_bytes)
