"""The effective manifest of one machine: the image's manifest with the rows of the machine's patch."""

from __future__ import annotations

import dataclasses

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from protocol.errors import PatchRefusedError
from protocol.image.manifest import Manifest
from protocol.image.stored_manifest import HashRows
from protocol.patch.machine_patch import MachinePatch


@dataclasses.dataclass(frozen=True, slots=True)
class OverlaidRows:
    """A column of hashes in which some rows are replaced; see :class:`HashRows`. The rest stays in its file.

    Attributes:
        rows: the whole column.
        blocks: ``int64[n]``, ascending: the replaced rows.
        values: ``uint8[n, 32]``.
    """

    rows: HashRows
    blocks: NDArray[np.int64]
    values: NDArray[np.uint8]

    def __getitem__(self, rows: int | slice | NDArray[np.int64], /) -> NDArray[np.uint8]:
        """Return rows as :meth:`HashRows.__getitem__` does."""
        found = self.rows[rows]
        if isinstance(rows, slice):
            start, stop = rows.start or 0, (rows.start or 0) + found.shape[0]
            first, last = np.searchsorted(self.blocks, [start, stop])
            if first < last:
                found = found.copy()
                found[self.blocks[first:last] - start] = self.values[first:last]
            return found
        at = np.minimum(np.searchsorted(self.blocks, rows), self.blocks.size - 1)
        if isinstance(rows, np.ndarray):
            replaced = self.blocks[at] == rows
            if replaced.any():
                found = found.copy()
                found[replaced] = self.values[at[replaced]]
            return found
        return self.values[at] if self.blocks[at] == rows else found


def effective_manifest(manifest: Manifest, patch: MachinePatch) -> Manifest:
    """Return the manifest of the patched disk.

    Image id, metadata and ``data`` stay the image's; the columns are those of the disk. Its payload offsets mean
    nothing: stored bytes come from the image's file by the image's manifest, and from the patch.

    Raises:
        PatchRefusedError: the patch is for another image.
    """
    if patch.image_id != manifest.image_id:
        raise PatchRefusedError(
            f"the machine patch is for the image {patch.image_id.hex()}, and this image is {manifest.image_id.hex()}: "
            "make the patches of this image"
        )
    if (patch.raw_bytes, patch.block_bytes) != (manifest.raw_bytes, manifest.block_bytes):
        raise PatchRefusedError("the machine patch contradicts the sizes of its image: make it again")
    kind, stored_bytes = manifest.kind.copy(), manifest.stored_bytes.copy()
    kind[patch.blocks], stored_bytes[patch.blocks] = patch.kind, patch.stored_bytes
    for column in (kind, stored_bytes):
        column.flags.writeable = False
    return manifest.with_columns(
        kind=kind,
        stored_bytes=stored_bytes,
        stored_hash=OverlaidRows(manifest.stored_hash, patch.blocks, patch.stored_hash),
        raw_hash=OverlaidRows(manifest.raw_hash, patch.blocks, patch.raw_hash),
    )


def machine_digest(image_id: bytes, patch_id: bytes) -> bytes:
    """Return the digest of a customised disk's content, 32 bytes."""
    return blake3(image_id + patch_id).digest()
