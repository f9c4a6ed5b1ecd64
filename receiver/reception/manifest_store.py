"""Where the agent collects a manifest: in memory, or in a temporary file from which it is read as it is needed."""

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
"""That of a disk of 120 GB, a tenth of the 300 MB that a receiver may have. Of a larger one 5 bytes a block are held
and the hashes are read as they are needed. A mapped file would count as this program's memory."""


class FileStore:
    """A manifest in a temporary file without a name, which is gone when nobody uses it any more."""

    def __init__(self, manifest_bytes: int) -> None:
        """Make the file and take its room.

        Raises:
            StorageError: there is no room for it.
        """
        self._manifest_bytes = manifest_bytes
        self._directory = tempfile.gettempdir()
        try:
            with tempfile.TemporaryFile(prefix="diskcast-manifest-") as file:
                # Now rather than in the middle of the cast.
                os.posix_fallocate(file.fileno(), 0, manifest_bytes)
                self._fd = os.dup(file.fileno())
        except OSError as error:
            self._no_room(error)
        weakref.finalize(self, os.close, self._fd)

    def __len__(self) -> int:
        return self._manifest_bytes

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """See :meth:`ManifestStore.write`.

        Raises:
            StorageError: the file can't be written.
        """
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._fd, data[done:], offset_bytes + done)
            except OSError as error:
                self._no_room(error)

    def collected(self) -> StoredManifest:
        """See :meth:`ManifestStore.collected`; reads all of it, 0.2 s for a TiB of disk.

        Raises:
            StorageError: the file can't be read.
        """
        # Its reader keeps this object, and with it the file.
        return StoredManifest(self._manifest_bytes, self._read, self._directory, changed=self._changed)

    def _read(self, offset_bytes: int, into: memoryview) -> None:
        try:
            count = read_at(self._fd, into, offset_bytes)
        except OSError as error:
            raise StorageError(
                f"the image's manifest in {self._directory} can't be read back: {error.strerror}; set TMPDIR to a "
                "directory on another disk"
            ) from error
        if count < len(into):
            raise self._changed(offset_bytes + count)

    def _changed(self, offset_bytes: int) -> StorageError:
        return StorageError(
            f"the image's manifest in {self._directory} isn't any more what was written there (from byte "
            f"{offset_bytes}): check that disk and this machine's memory, or set TMPDIR to a directory on another disk"
        )

    def _no_room(self, error: OSError) -> NoReturn:
        raise StorageError(
            f"no room for the image's manifest of {format_bytes(self._manifest_bytes)} in {self._directory}: "
            f"{error.strerror}; set TMPDIR to a directory that has room"
        ) from error


def manifest_store(manifest_bytes: int) -> ManifestStore:
    """Room for a manifest.

    Raises:
        StorageError: it is too large for memory, and there is no room for a file.
    """
    if manifest_bytes <= MANIFEST_IN_MEMORY_BYTES_MAX:
        return MemoryStore(manifest_bytes)
    return FileStore(manifest_bytes)
