"""SHA-256 of a whole disk, from its blocks in order: the same hash that forensic tools compute."""

from __future__ import annotations

import hashlib
from typing import Final

from protocol.constants import MIB
from protocol.image.manifest import Manifest

SHA256_BYTES: Final = 32

_ZEROS: Final = memoryview(bytes(MIB))


class SourceHash:
    """A hash of a disk, computed from consecutive pieces."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.done_bytes = 0

    def add(self, raw: bytes | memoryview) -> None:
        """Add the next bytes of the disk."""
        self._hash.update(raw)
        self.done_bytes += len(raw)

    def add_zeros(self, count: int) -> None:
        """Add ``count`` zeros as the next bytes of the disk."""
        self.done_bytes += count
        while count > 0:
            self._hash.update(_ZEROS[:count])
            count -= len(_ZEROS)

    def digest(self) -> bytes:
        """Return the hash of all added bytes."""
        return self._hash.digest()


def source_sha256_of(manifest: Manifest) -> bytes | None:
    """Return the hash of the source disk that the image records; None if it records none."""
    value = manifest.metadata.get("source_sha256")
    return value if isinstance(value, bytes) else None
