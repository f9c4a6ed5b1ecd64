"""Fetch of a remote image into the cache: in pieces, resumable, and verified before the file gets its final name."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Final

import structlog

from protocol.constants import KIB, MIB
from protocol.errors import ImageDamagedError, ImageError, StorageError
from sender.imaging.image_file import ImageFile
from sender.imaging.image_verify import verify_image
from sender.imaging.partial_file import PRIVATE_FILE_MODE
from sender.library.cache import Cache, Copy, Origin
from sender.library.image_probe import FoundImage, printable
from sender.library.location import Location
from sender.library.remote_errors import RemoteChangedError, RemoteError
from sender.library.remote_files import RemoteFiles
from sender.library.remote_reader import RemoteReader, RemoteStatus

_log = structlog.get_logger(__name__)

PIECE_BYTES: Final = 8 * MIB
"""Size of a request: the round trip costs 1 % of a piece's time at 1 Gbit/s and 1 ms."""

PIECE_BYTES_MIN: Final = 256 * KIB
"""Failures halve the pieces down to this size: even a connection that breaks every few seconds makes progress."""

GOOD_PIECES: Final = 8
"""Successful pieces in a row before the size doubles again: a connection limit then costs an eighth of the requests."""

FAILURES_MAX: Final = 6
"""Failures in a row; with the back-off, a fetch survives a server's restart within half a minute."""

BACK_OFF_S: Final = 0.5
BACK_OFF_S_MAX: Final = 15.0

RESTARTS_MAX: Final = 3
"""Restarts from zero: a file that is replaced more often during a fetch isn't ready to be cast."""

_FLUSH_BYTES: Final = 256 * MIB
"""Written data is flushed in steps, so that the last fsync is short."""


class FetchStoppedError(ImageError):
    """The fetch was stopped."""

    exit_code = ImageError.exit_code


class _RestartError(Exception):
    """The fetched data is unusable."""


@dataclasses.dataclass(slots=True)
class Fetch:
    """Fetch of one image. :meth:`run` blocks, so it runs in a thread of its own.

    Attributes:
        files: access to the servers.
        cache: destination.
        location: source.
        found: the image to fetch.
        on_progress: called in the thread with the count of fetched bytes.
        stopped: set by the owner to stop the fetch soon; fetched data is kept for the next fetch.
        back_off_s: delay before the first retry.
    """

    files: RemoteFiles
    cache: Cache
    location: Location
    found: FoundImage
    on_progress: Callable[[int], None]
    stopped: threading.Event = dataclasses.field(default_factory=threading.Event)
    back_off_s: float = BACK_OFF_S
    _failures: int = 0
    _piece_bytes: int = dataclasses.field(default_factory=lambda: PIECE_BYTES)
    _good_count: int = 0
    _damaged_once: bool = False

    def run(self) -> Copy:
        """Fetch the image, verify it, and give its file the final name.

        Raises:
            RemoteError: the server failed too often.
            ImageError: the file is another image now, is damaged at its source, or is being fetched by another program.
            StorageError: the cache's disk is full or failed.
            FetchStoppedError: the fetch was stopped.
        """
        image_id = self.found.image_id
        with self._partial(image_id) as fd:
            restarts = 0
            while True:
                try:
                    self._download(fd)
                    self._verify()
                    break
                except (_RestartError, RemoteChangedError) as reason:
                    restarts += 1
                    if restarts > RESTARTS_MAX:
                        raise ImageError(
                            f"{self.location.shown} is replaced again and again while it is fetched: upload it under "
                            "another name and rename it when it is complete"
                        ) from None
                    _log.info("fetch_restarted", location=self.location.shown, reason=str(reason))
                    os.ftruncate(fd, 0)
                except ImageDamagedError:
                    os.ftruncate(fd, 0)
                    raise
                except RemoteError as error:
                    self._failures += 1
                    if not error.transient or self._failures > FAILURES_MAX:
                        raise
                    _log.info("fetch_interrupted", location=self.location.shown, reason=str(error))
                    self._wait()
            self._commit(fd)
        return Copy(self.cache.path_of(image_id), self.found, self.cache.origin(image_id))

    def _wait(self) -> None:
        self._piece_bytes = max(PIECE_BYTES_MIN, self._piece_bytes // 2)
        self._good_count = 0
        delay = min(self.back_off_s * 2 ** (self._failures - 1), BACK_OFF_S_MAX)
        self.stopped.wait(delay * random.uniform(0.75, 1.25))  # spread the retries of a server's images
        self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if self.stopped.is_set():
            raise FetchStoppedError(f"the fetch of {self.found.name} was stopped")

    @contextlib.contextmanager
    def _partial(self, image_id: str) -> Iterator[int]:
        """Open and lock the incomplete file; translate its ``OSError`` to ``StorageError``."""
        path = self.cache.partial_of(image_id)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode=PRIVATE_FILE_MODE)
            try:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ImageError(
                        f"{printable(path)} is being written by another program: configure a separate "
                        "library.cache_directory for each daemon"
                    ) from None
                yield fd
            finally:
                os.close(fd)
        except OSError as error:
            raise StorageError(
                f"the image {self.found.name} can't be written to the cache {printable(self.cache.directory)}: "
                f"{error.strerror}; free some space, or check its disk"
            ) from error

    def _download(self, fd: int) -> None:
        """Fetch all missing bytes."""
        status = self.files.status(self.location)
        origin = Origin(self.location.shown, status.version)
        done = os.fstat(fd).st_size
        if done and (self.cache.origin(self.found.image_id) != origin or done > status.size_bytes):
            os.ftruncate(fd, 0)
            done = 0
        if not done:
            self._check_same_image(status)
            self.cache.set_origin(self.found.image_id, origin)
        with self.files.open(self.location, status) as reader:
            self._download_from(reader, fd, done, status)
        if self.files.status(self.location).version != status.version:  # few servers support If-Match
            raise RemoteChangedError(f"{self.location.shown} was replaced while it was fetched")

    def _download_from(self, reader: RemoteReader, fd: int, done: int, status: RemoteStatus) -> None:
        flushed = done
        self.on_progress(done)
        while done < status.size_bytes:
            self._raise_if_stopped()
            piece = reader.read(done, min(self._piece_bytes, status.size_bytes - done))
            written = 0
            while written < len(piece):
                written += os.pwrite(fd, piece[written:], done + written)
            done += len(piece)
            self._failures = 0
            self._grow_piece()
            if done - flushed >= _FLUSH_BYTES:
                os.fdatasync(fd)
                flushed = done
            self.on_progress(done)

    def _grow_piece(self) -> None:
        self._good_count += 1
        if self._good_count >= GOOD_PIECES:
            self._good_count = 0
            self._piece_bytes = min(PIECE_BYTES, 2 * self._piece_bytes)

    def _check_same_image(self, status: RemoteStatus) -> None:
        """Check that the URL still has the wanted image, before any byte is kept."""
        found = self.files.describe(self.location, status)
        if found.image_id != self.found.image_id:
            raise ImageError(
                f"{self.location.shown} is another image now, {found.name} ({found.image_id[:12]}): cast that, or put "
                f"{self.found.name} ({self.found.image_id[:12]}) back"
            )

    def _verify(self) -> None:
        """Verify every byte against its hash.

        Raises:
            ImageDamagedError: the image is damaged at its source: the second fetch has the damage too.
            _RestartError: the first fetch has damage, which the transfer may have caused.
        """
        path = self.cache.partial_of(self.found.image_id)
        try:
            with ImageFile.open(path) as image:
                if image.manifest.image_id.hex() != self.found.image_id:
                    raise RemoteChangedError(f"{self.location.shown} was replaced while it was fetched")
                # One thread: running casts need the other CPUs.
                verify_image(image, jobs=1, on_progress=lambda *_: self._raise_if_stopped()).raise_if_bad(
                    image
                )
        except ImageDamagedError as error:
            text = str(error).replace(str(path), self.location.shown)
            if self._damaged_once:
                raise ImageDamagedError(
                    f"{text} (it was fetched twice, and is damaged at its source)"
                ) from error
            self._damaged_once = True
            raise _RestartError(text) from error

    def _commit(self, fd: int) -> None:
        path = self.cache.path_of(self.found.image_id)
        os.fsync(fd)
        self.cache.partial_of(self.found.image_id).replace(path)
        directory = os.open(self.cache.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self.cache.touch(self.found.image_id)
        _log.info(
            "image_fetched", image_id=self.found.image_id, name=self.found.name, location=self.location.shown
        )
