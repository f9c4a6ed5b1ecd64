"""The opening of an upload: its base image is pinned and indexed, and its partial file is recovered."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Final

import structlog

from protocol.control.capture_messages import BlockRows
from protocol.errors import DiskcastError
from sender.daemon.captures.base_image import BaseImage
from sender.daemon.captures.upload_session import UploadSession
from sender.daemon.captures.upload_start import DIGEST_KEY, UploadStart
from sender.imaging.block_check import BlockChecker
from sender.imaging.image_file import ImageFile
from sender.imaging.resumable_image import ResumableImage
from sender.library.library import Library
from sender.store.records.captures import Capture

_OPENING_WAIT_S: Final = 4.0
"""Longest wait of a start for the check of a partial file, which may have hundreds of gigabytes; then it's repeated."""

_log = structlog.get_logger(__name__)


class _AbandonedError(Exception):
    """The capture has ended: its partial file needs no check."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Opening:
    session: asyncio.Future[UploadSession]
    is_abandoned: threading.Event


class UploadOpener:
    """The uploads that are being opened. Not thread-safe: use it on the event loop."""

    def __init__(self, library: Library) -> None:
        """Open uploads.

        Args:
            library: has the base images.
        """
        self._library = library
        self._checker = BlockChecker()
        self._opening: dict[str, _Opening] = {}
        self._abandoned: set[asyncio.Future[None]] = set()

    @property
    def capture_ids(self) -> Set[str]:
        """The captures whose upload is being opened."""
        return self._opening.keys()

    async def open(self, capture: Capture, start: UploadStart) -> UploadSession | None:
        """Return a new session at the end of the partial file; None while its check takes long: call again.

        Raises:
            ConfigurationError: the file can't be created there, or another process is writing it.
            StorageError: the disk failed.
        """
        capture_id = capture.capture_id
        opening = self._opening.get(capture_id)
        if opening is None:
            is_abandoned = threading.Event()
            session = asyncio.ensure_future(self._open(capture, start, is_abandoned))
            opening = self._opening[capture_id] = _Opening(session, is_abandoned)
        await asyncio.wait([opening.session], timeout=_OPENING_WAIT_S)
        if not opening.session.done() or self._opening.get(capture_id) is not opening:
            return None
        del self._opening[capture_id]
        return await opening.session

    def abandon(self, capture_id: str) -> None:
        """Give up the opening of a capture that has ended, so that another one can have its turn at once."""
        opening = self._opening.pop(capture_id, None)
        if opening is not None:
            opening.is_abandoned.set()
            closing = asyncio.ensure_future(_close_abandoned(opening))
            self._abandoned.add(closing)
            closing.add_done_callback(self._abandoned.discard)

    def close(self) -> None:
        """Cancel the openings, and stop the threads that check blocks: close all sessions before."""
        for opening in self._opening.values():
            opening.is_abandoned.set()
            opening.session.cancel()
        self._checker.close()

    async def _open(
        self, capture: Capture, start: UploadStart, is_abandoned: threading.Event
    ) -> UploadSession:
        with contextlib.ExitStack() as files:
            base = await self._open_base(capture)
            if base is not None:
                files.callback(base.close)
            image = await asyncio.to_thread(self._recover, Path(capture.location), start, is_abandoned)
            files.pop_all()  # the session closes them
            return UploadSession(image, start, self._checker, base, uploaded_bytes=capture.uploaded_bytes)

    def _recover(self, path: Path, start: UploadStart, is_abandoned: threading.Event) -> ResumableImage:
        def check(rows: BlockRows, payload: Sequence[memoryview]) -> int:
            if is_abandoned.is_set():
                raise _AbandonedError
            return self._checker.good_count(rows, payload, start.geometry)

        if is_abandoned.is_set():  # while the base image was opened: its partial file is removed already
            raise _AbandonedError
        with contextlib.ExitStack() as files:
            image = files.enter_context(
                ResumableImage(path, start.manifest_start, start.layout, start.geometry)
            )
            image.recover(check)
            files.pop_all()
            return image

    async def _open_base(self, capture: Capture) -> BaseImage | None:
        """Open the base image; a missing or damaged one only makes the upload longer."""
        image_id = capture.plan.base_image_id
        if not image_id:
            return None
        try:
            with contextlib.ExitStack() as files:
                pinned = await self._library.open(image_id, capture.capture_id)
                files.callback(pinned.close)
                base = await asyncio.to_thread(BaseImage, pinned)
                files.pop_all()
                return base
        except DiskcastError as error:
            _log.warning("capture_base_unusable", capture=capture.capture_id, error=str(error))
            return None


async def _close_abandoned(opening: _Opening) -> None:
    """Close the session, if the check was complete before it was given up."""
    with contextlib.suppress(_AbandonedError, DiskcastError):
        session = await opening.session
        await session.close()


def find_committed_image(path: Path, start: UploadStart) -> bytes | None:
    """Return the id of the image that a capture has committed; None if it hasn't.

    Raises:
        ImageError: the file is no image.
        StorageError: the disk failed.
    """
    if not path.exists():
        return None
    with ImageFile.open(path) as file:
        manifest = file.manifest
        known = {name: value for name, value in manifest.metadata.items() if name != DIGEST_KEY}
        expected = {name: value for name, value in start.metadata.items() if name != DIGEST_KEY}
        same = (manifest.name, manifest.raw_bytes) == (start.name, start.geometry.raw_bytes)
        return manifest.image_id if same and known == expected else None
