"""The opening of an upload: its base image is pinned and indexed, and its partial file is recovered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Set
from pathlib import Path
from typing import Final

import structlog

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


class UploadOpener:
    """The uploads that are being opened. Not thread-safe: use it on the event loop."""

    def __init__(self, library: Library) -> None:
        """Open uploads.

        Args:
            library: has the base images.
        """
        self._library = library
        self._checker = BlockChecker()
        self._opening: dict[str, asyncio.Future[UploadSession]] = {}

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
        opening = self._opening.get(capture.capture_id)
        if opening is None:
            opening = asyncio.ensure_future(self._open(capture, start))
            self._opening[capture.capture_id] = opening
        await asyncio.wait([opening], timeout=_OPENING_WAIT_S)
        if not opening.done():
            return None
        self._opening.pop(capture.capture_id, None)
        return await opening

    def close(self) -> None:
        """Cancel the openings, and stop the threads that check blocks: close all sessions before."""
        for opening in self._opening.values():
            opening.cancel()
        self._checker.close()

    async def _open(self, capture: Capture, start: UploadStart) -> UploadSession:
        with contextlib.ExitStack() as files:
            base = await self._open_base(capture)
            if base is not None:
                files.callback(base.close)
            image = await asyncio.to_thread(self._recover, Path(capture.location), start)
            files.pop_all()  # the session closes them
            return UploadSession(image, start, self._checker, base, uploaded_bytes=capture.uploaded_bytes)

    def _recover(self, path: Path, start: UploadStart) -> ResumableImage:
        with contextlib.ExitStack() as files:
            image = files.enter_context(
                ResumableImage(path, start.manifest_start, start.layout, start.geometry)
            )
            image.recover(lambda rows, payload: self._checker.good_count(rows, payload, start.geometry))
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
