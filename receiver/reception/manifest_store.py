"""Storage for a manifest that is being received: memory, or a temporary file that is read on demand."""

from __future__ import annotations

import os
import tempfile
import weakref
from typing import Final, NoReturn

from protocol.constants import MIB
from protocol.errors import StorageError
from protocol.image.stored_manifest import StoredManifest
from protocol.program.positional_reads import read_at
from protocol.receiving.manifest_reception import ManifestStore, MemoryStore
from protocol.shared.units import format_bytes

MANIFEST_IN_MEMORY_BYTES_MAX: Final = 32 * MIB
"""The manifest of a 120 GB disk, and a tenth of the 300 MB that a receiver may use. Of a larger manifest 5 bytes per
block stay in memory and the hashes are read on demand. A mapped file would count as this program's memory."""


class FileStore:
    """A manifest in an unlinked temporary file, which the kernel deletes after its last use."""

    def __init__(self, manifest_bytes: int) -> None:
        """Create the file and allocate its space.

        Raises:
            StorageError: there is no space for it.
        """
        self._manifest_bytes = manifest_bytes
        self._directory = tempfile.gettempdir()
        try:
            with tempfile.TemporaryFile(prefix="diskcast-manifest-") as file:
                # Fail now rather than in the middle of the cast.
                os.posix_fallocate(file.fileno(), 0, manifest_bytes)
                self._fd = os.dup(file.fileno())
        except OSError as error:
            self._fail_no_space(error)
        weakref.finalize(self, os.close, self._fd)

    def __len__(self) -> int:
        return self._manifest_bytes

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """Write a part, as :meth:`ManifestStore.write`.

        Raises:
            StorageError: the file can't be written.
        """
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._fd, data[done:], offset_bytes + done)
            except OSError as error:
                self._fail_no_space(error)

    def collected(self) -> StoredManifest:
        """Return the manifest, as :meth:`ManifestStore.collected`; reads all of it, 0.2 s for a disk of 1 TiB.

        Raises:
            StorageError: the file can't be read.
        """
        # The reader keeps this object alive, and with it the file.
        return StoredManifest(self._manifest_bytes, self._read, self._directory, changed=self._changed)

    def _read(self, offset_bytes: int, into: memoryview) -> None:
        try:
            count = read_at(self._fd, into, offset_bytes)
        except OSError as error:
            raise StorageError(
                f"cannot read back the image's manifest in {self._directory}: {error.strerror}; set TMPDIR to a "
                "directory on another disk"
            ) from error
        if count < len(into):
            raise self._changed(offset_bytes + count)

    def _changed(self, offset_bytes: int) -> StorageError:
        return StorageError(
            f"the image's manifest in {self._directory} changed after it was written (from byte {offset_bytes}): check "
            "that disk and this machine's memory, or set TMPDIR to a directory on another disk"
        )

    def _fail_no_space(self, error: OSError) -> NoReturn:
        raise StorageError(
            f"cannot store the image's manifest of {format_bytes(self._manifest_bytes)} in {self._directory}: "
            f"{error.strerror}; set TMPDIR to a directory with more free space"
        ) from error


def manifest_store(manifest_bytes: int) -> ManifestStore:
    """Return a store for a manifest of ``manifest_bytes``.

    Raises:
        StorageError: it is too large for memory, and there is no space for a file.
    """
    if manifest_bytes <= MANIFEST_IN_MEMORY_BYTES_MAX:
        return MemoryStore(manifest_bytes)
    return FileStore(manifest_bytes)
