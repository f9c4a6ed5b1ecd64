"""SHA-256 of a whole disk, from its blocks in order: what other forensic tools say of the same disk."""

from __future__ import annotations

import hashlib
from typing import Final

from protocol.constants import MIB
from protocol.image.manifest import Manifest

SHA256_BYTES: Final = 32

_ZEROS: Final = memoryview(bytes(MIB))


class SourceHash:
    """The hash of a disk that comes in pieces."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.done_bytes = 0

    def add(self, raw: bytes | memoryview) -> None:
        """The disk's next bytes."""
        self._hash.update(raw)
        self.done_bytes += len(raw)

    def add_zeros(self, count: int) -> None:
        """The disk's next ``count`` bytes, all zeros."""
        self.done_bytes += count
        while count > 0:
            self._hash.update(_ZEROS[:count])
            count -= len(_ZEROS)

    def digest(self) -> bytes:
        """Of all that came."""
        return self._hash.digest()


def source_sha256_of(manifest: Manifest) -> bytes | None:
    """What the image says of its source disk; None if it was packed without that."""
    value = manifest.metadata.get("source_sha256")
    return value if isinstance(value, bytes) else None
