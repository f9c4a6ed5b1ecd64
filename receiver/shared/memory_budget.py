"""What an agent needs of memory, and what it gives up for large images: it stays within 300 MB where it can.

::

    BASE        interpreter, receive slab, buffers to write and read back, what is committed last
    assembly    blocks on their way to the disk, as asked for (96 MiB)
    blocks      BLOCK_MEMORY_BYTES for each block of the image

Measured, with 256 KiB blocks and the assembly full: 176 MB for a disk of 16 GiB, 239 MB for 1 TiB. From 1.3 TiB on the
assembly gets smaller; the 300 MB are reached at 2.3 TiB, or 9.3 TiB packed with ``--block-size 1MiB``.
"""

from __future__ import annotations

from typing import Final

from protocol.constants import ASSEMBLY_BYTES_DEFAULT, MIB

MEMORY_BYTES_MAX: Final = 300_000_000

BLOCK_MEMORY_BYTES: Final = 16
"""Of the manifest 5 (size and kind), of the target 3 (needed, unscanned, to be zeroed), of the session 2 (symbols,
stage), of the scan 2 (untold, being told); and 4 for masks that are there for a moment. Of a disk that isn't large the
manifest is in memory as well: 64 more, 32 MiB at most."""

BASE_BYTES: Final = 110_000_000
"""75 MB measured, of which 25 are buffers; and up to 32 MiB that are committed last."""

ASSEMBLY_BYTES_MIN: Final = 32 * MIB
"""128 blocks: enough for every writer and for what is repaired meanwhile."""


def assembly_bytes_for(wished_bytes: int, block_count: int) -> int:
    """Size of the buffer pool for an image of ``block_count`` blocks.

    It is what was wished for, less what the blocks take beyond the room that the default leaves for them: an operator
    who wishes for more has it.
    """
    room_bytes = MEMORY_BYTES_MAX - BASE_BYTES - ASSEMBLY_BYTES_DEFAULT
    excess_bytes = max(0, block_count * BLOCK_MEMORY_BYTES - room_bytes)
    return max(min(wished_bytes, ASSEMBLY_BYTES_MIN), wished_bytes - excess_bytes)
