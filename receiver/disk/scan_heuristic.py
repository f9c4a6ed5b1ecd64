"""What of an image a target holds already: the whole of resume and of refreshing last week's image.

No journal says so, the content does: every block is read and compared with the manifest.
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
"""Blocks looked at to decide whether a target is worth reading whole. If none of them is right, then with a
probability of 99.4 % less than 2 % of all are, and reading a disk of which nothing can be kept would take its time from
writing. On a hard disk that seeks for 10 ms, the sample takes less than 3 s."""


def worth_scanning(read_back: ReadBack, verifier: Verifier, manifest: Manifest, rng: random.Random) -> bool:
    """Whether to read all of the target: it carries the image's mark, or one of a few random blocks is right.

    Args:
        read_back: the target.
        verifier: compares with ``manifest``.
        manifest: the image's.
        rng: draws the sample.

    Raises:
        StorageError: the disk couldn't be read.
    """
    if read_back.size_bytes == 0:
        return False
    page = aligned_memory(ALIGNMENT_BYTES)
    marker = parse_marker_untrusted(page[: read_back.read_into(page, 0)])
    if marker is not None and marker.image_id == manifest.image_id:
        return True
    sample = sample_set(manifest.stored_mask, SAMPLE_COUNT, rng)
    return sample.size == 0 or verifier.missing_blocks(sample).size < sample.size
