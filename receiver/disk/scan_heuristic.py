"""The decision whether to scan a target for blocks of the image that it holds already.

A scan serves both resuming and refreshing an older image. It needs no journal: every block is read and compared with
the manifest.
"""

from __future__ import annotations

import random
from typing import Final

from protocol.image.incomplete_marker import parse_marker_untrusted
from protocol.image.manifest import Manifest
from protocol.shared.block_masks import sample_set
from receiver.disk.aligned_buffers import aligned_memory
from receiver.disk.read_back import ALIGNMENT_BYTES, ReadBack
from receiver.disk.verifier import Verifier

SAMPLE_COUNT: Final = 256
"""Size of the sample that decides whether a target is scanned. If no block of it is right, then less than 2 % of all
blocks are right, with a probability of 99.4 %, and a scan would only delay writing. On a hard disk with seeks of 10 ms,
the sample takes less than 3 s."""


def worth_scanning(read_back: ReadBack, verifier: Verifier, manifest: Manifest, rng: random.Random) -> bool:
    """Return whether the target has the image's marker or a random sample has a right block.

    Args:
        read_back: the target.
        verifier: compares the target with ``manifest``.
        manifest: manifest of the image.
        rng: draws the sample.

    Raises:
        StorageError: the disk can't be read.
    """
    if read_back.size_bytes == 0:
        return False
    page = aligned_memory(ALIGNMENT_BYTES)
    marker = parse_marker_untrusted(page[: read_back.read_into(page, 0)])
    if marker is not None and marker.image_id == manifest.image_id:
        return True
    sample = sample_set(manifest.stored_mask, SAMPLE_COUNT, rng)
    return sample.size == 0 or verifier.missing_blocks(sample).size < sample.size
