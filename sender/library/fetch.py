"""Fetching a remote image into the cache: in pieces, going on after interruptions, checked before it gets its name."""

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
from sender.library.cache import Cache, Copy, Origin
from sender.library.image_probe import FoundImage, printable
from sender.library.location import Location
from sender.library.remote_files import (
    RemoteChangedError,
    RemoteError,
    RemoteFiles,
    RemoteReader,
    RemoteStatus,
)

_log = structlog.get_logger(__name__)

PIECE_BYTES: Final = 8 * MIB
"""Asked for at once: a request costs a round trip, 1 % of a piece's time at 1 Gbit/s and 1 ms."""

PIECE_BYTES_MIN: Final = 256 * KIB
"""After a failure pieces are halved down to it: a connection that breaks every few seconds still brings some."""

GOOD_PIECES: Final = 8
"""In a row, before pieces are doubled again: what a limit on connections then costs is an eighth."""

FAILURES_MAX: Final = 6
"""Without a new piece between them; with the back-off, a server that restarts within half a minute is waited for."""

BACK_OFF_S: Final = 0.5
BACK_OFF_S_MAX: Final = 15.0

ANEW_MAX: Final = 3
"""Starts from zero: a file that is replaced more often while it is fetched isn't ready to be cast."""

_FLUSH_BYTES: Final = 256 * MIB
"""Written data is flushed in steps, so that the last fsync is short."""


class FetchStoppedError(ImageError):
    """Nobody wants the image any more."""

    exit_code = ImageError.exit_code


class _AnewError(Exception):
    """What was fetched so far is of no use."""


@dataclasses.dataclass(slots=True)
class Fetch:
    """One image on its way; :meth:`run` blocks, in a thread of its own.

    Attributes:
        found: what is fetched.
        on_progress: called in the thread with the bytes that are here.
        stopped: set from outside to end it soon; what was fetched stays for the next time.
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
        """Fetch it all, check it, and put it into its place.

        Raises:
            RemoteError: the server failed more often than is sensible.
            ImageError: it is another image now, damaged at its source, or being fetched by another program.
            StorageError: the cache's disk is full or failed.
            FetchStoppedError: it was stopped.
        """
        image_id = self.found.image_id
        with self._partial(image_id) as fd:
            starts = 0
            while True:
                try:
                    self._bring(fd)
                    self._check()
                    break
                except (_AnewError, RemoteChangedError) as reason:
                    starts += 1
                    if starts > ANEW_MAX:
                        raise ImageError(
                            f"{self.location.shown} is replaced again and again while it is fetched: put it there "
                            "under another name and rename it when it is whole"
                        ) from None
                    _log.info("fetch_started_anew", location=self.location.shown, reason=str(reason))
                    os.ftruncate(fd, 0)
                except ImageDamagedError:
                    os.ftruncate(fd, 0)
                    raise
                except RemoteError as error:
                    self._failures += 1
                    if not error.passing or self._failures > FAILURES_MAX:
                        raise
                    _log.info("fetch_interrupted", location=self.location.shown, reason=str(error))
                    self._wait()
            self._commit(fd)
        return Copy(self.cache.path_of(image_id), self.found, self.cache.origin(image_id))

    def _wait(self) -> None:
        self._piece_bytes = max(PIECE_BYTES_MIN, self._piece_bytes // 2)
        self._good_count = 0
        delay = min(self.back_off_s * 2 ** (self._failures - 1), BACK_OFF_S_MAX)
        self.stopped.wait(delay * random.uniform(0.75, 1.25))  # not all images of a server at the same moment
        self._go_on()

    def _go_on(self) -> None:
        if self.stopped.is_set():
            raise FetchStoppedError(f"the fetch of {self.found.name} was stopped")

    @contextlib.contextmanager
    def _partial(self, image_id: str) -> Iterator[int]:
        """The file under construction, locked; its OSErrors are told as the cache's."""
        path = self.cache.partial_of(image_id)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode=0o644)
            try:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ImageError(
                        f"{printable(path)} is being written by another program: give each daemon a "
                        "library.cache_directory of its own"
                    ) from None
                yield fd
            finally:
                os.close(fd)
        except OSError as error:
            raise StorageError(
                f"the image {self.found.name} can't be written to the cache {printable(self.cache.directory)}: "
                f"{error.strerror}; free some space, or mend its disk"
            ) from error

    def _bring(self, fd: int) -> None:
        """All bytes that are missing."""
        status = self.files.status(self.location)
        origin = Origin(self.location.shown, status.version)
        done = os.fstat(fd).st_size
        if done and (self.cache.origin(self.found.image_id) != origin or done > status.size_bytes):
            os.ftruncate(fd, 0)
            done = 0
        if not done:
            self._same_image(status)
            self.cache.set_origin(self.found.image_id, origin)
        with self.files.open(self.location, status) as reader:
            self._bring_from(reader, fd, done, status)
        if self.files.status(self.location).version != status.version:  # few servers look at If-Match
            raise RemoteChangedError(f"{self.location.shown} was replaced while it was fetched")

    def _bring_from(self, reader: RemoteReader, fd: int, done: int, status: RemoteStatus) -> None:
        flushed = done
        self.on_progress(done)
        while done < status.size_bytes:
            self._go_on()
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

    def _same_image(self, status: RemoteStatus) -> None:
        """Look at what is behind the URL now, before a byte of it counts as the image's."""
        found = self.files.describe(self.location, status)
        if found.image_id != self.found.image_id:
            raise ImageError(
                f"{self.location.shown} is another image now, {found.name} ({found.image_id[:12]}): cast that, or put "
                f"{self.found.name} ({self.found.image_id[:12]}) back"
            )

    def _check(self) -> None:
        """Every byte against its hash.

        Raises:
            ImageDamagedError: it is damaged at its source, too.
            _AnewError: it was put together from several attempts, of which one may be to blame.
        """
        path = self.cache.partial_of(self.found.image_id)
        try:
            with ImageFile.open(path) as image:
                if image.manifest.image_id.hex() != self.found.image_id:
                    raise RemoteChangedError(f"{self.location.shown} was replaced while it was fetched")
                # One thread: casts that run need the other CPUs.
                verify_image(image, jobs=1, on_progress=lambda *_: self._go_on()).raise_if_bad(image)
        except ImageDamagedError as error:
            said = str(error).replace(str(path), self.location.shown)
            if self._damaged_once:
                raise ImageDamagedError(
                    f"{said} (it was fetched twice, and is damaged at its source)"
                ) from error
            self._damaged_once = True
            raise _AnewError(said) from error

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
