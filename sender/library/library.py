"""The daemon's images by id: what the folders, the remote locations and the cache have, in one view."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import structlog

from protocol.errors import DiskcastError, ImageError
from sender.daemon.requests import RequestRefused, conflict, not_found
from sender.library.folder import SETTLE_S, FolderFile, FolderWatch
from sender.library.found import key_of, printable
from sender.store.records import Image, ImageState, Problem

if TYPE_CHECKING:
    from sender.server_config import LibrarySection
    from sender.store.database import Store

_log = structlog.get_logger(__name__)

READY_S: Final = 30.0
"""An image that isn't known is waited for so long after the start: until every folder was looked at."""

SCAN_S: Final = 10.0
"""A look that was asked for is waited for so long; a slow file server's goes on."""

ID_PREFIX_MIN: Final = 8
"""Digits of an image's id that may stand for it."""

_NAMED_MAX: Final = 8
"""Images that an error lists."""

_STORE_RETRY_S: Final = 5.0


class OpenImage:
    """An image in use by a cast: its file stays, whatever the cache needs. A context manager.

    Attributes:
        image: as it was when it was opened.
        path: of the whole file, on this machine.
    """

    def __init__(self, library: Library, image: Image, path: Path, cast_id: str) -> None:
        """Use :meth:`Library.open`."""
        self.image = image
        self.path = path
        self.cast_id = cast_id
        self._library = library
        self._closed = False

    def close(self) -> None:
        """The cast doesn't need it any more; again is fine."""
        if not self._closed:
            self._closed = True
            self._library._unpin(self.image.image_id, self.cast_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Library:
    """All images; call from the event loop.

    Attributes:
        on_change: called whenever :meth:`images` or :meth:`problems` has changed; may be set at any time.
    """

    def __init__(self, config: LibrarySection, store: Store | None, *, settle_s: float = SETTLE_S) -> None:
        """Nothing is looked at before :meth:`run`.

        Args:
            config: the section ``library``.
            store: keeps what was known over restarts; the library works while it fails.
            settle_s: a file that isn't a whole image may still be written for so long after its last change.
        """
        self.on_change: Callable[[], None] = lambda: None
        self._config = config
        self._store = store
        self._folders = [
            FolderWatch(folder, on_change=self._rebuild, settle_s=settle_s) for folder in config.folders
        ]
        self._images: dict[str, Image] = {}
        self._paths: dict[str, Path] = {}
        self._pins: dict[str, collections.Counter[str]] = {}
        self._first_seen: dict[str, datetime] = {}
        self._unwritten: dict[str, Image] = {}
        self._write = asyncio.Event()
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._load()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_to_store())
            first = [asyncio.ensure_future(watch.look()) for watch in self._folders]
            for watch in self._folders:
                group.create_task(watch.watch(self._config.scan_interval_s))
            group.create_task(self._become_ready(first))

    async def _become_ready(self, first: Sequence[asyncio.Future[None]]) -> None:
        try:
            if first:
                await asyncio.wait(first)
        finally:
            for look in first:
                look.cancel()
        self._ready.set()

    # -- what there is ------------------------------------------------------------------------------------------

    def images(self) -> list[Image]:
        """All of them by name, damaged ones too."""
        return sorted(self._images.values(), key=lambda image: (image.name.casefold(), image.image_id))

    def get(self, image_id: str) -> Image | None:
        """One by its whole id."""
        return self._images.get(image_id)

    def resolve(self, text: str) -> Image:
        """The image that is meant by an id, the start of one (8 digits or more), or a name.

        Raises:
            RequestRefused: there is none (404), or several (409: the text lists them).
        """
        if (exact := self._images.get(text)) is not None:
            return exact
        named = [image for image in self._images.values() if image.name == text]
        if not named and len(text) >= ID_PREFIX_MIN:
            named = [image for image in self._images.values() if image.image_id.startswith(text.lower())]
        # A damaged copy beside the good one doesn't make its name ambiguous.
        usable = [image for image in named if image.state is not ImageState.DAMAGED]
        match usable or named:
            case []:
                raise not_found("image", text)
            case [image]:
                return image
            case several:
                listed = ", ".join(
                    f"{image.name} ({image.image_id[:12]}, {image.location})"
                    for image in several[:_NAMED_MAX]
                )
                raise conflict(
                    f"{text!r} may be any of {len(several)} images: {listed}; say the start of its id"
                )

    def problems(self) -> list[Problem]:
        """What an operator should look at."""
        found = [watch.problem for watch in self._folders]
        found += [
            Problem("library", f"damaged image: {image.problem}", image.first_seen_at)
            for image in self._images.values()
            if image.state is ImageState.DAMAGED
        ]
        return [problem for problem in found if problem is not None]

    async def scan(self) -> None:
        """Look at everything now; returns when that is done, or after :data:`SCAN_S`."""
        looks = [asyncio.ensure_future(watch.look()) for watch in self._folders]
        try:
            if looks:
                await asyncio.wait(looks, timeout=SCAN_S)
        finally:
            for look in looks:
                look.cancel()

    # -- use ------------------------------------------------------------------------------------------------------

    async def open(self, image_id: str, cast_id: str) -> OpenImage:
        """Pin an image for a cast.

        Raises:
            ImageError: there is no such image, or it is damaged.
        """
        if self._paths.get(image_id) is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ready.wait(), READY_S)
        image = self._images.get(image_id)
        if image is None:
            raise ImageError(
                f"the image {image_id} isn't in the library: put its file back into a folder of library.folders"
            )
        path = self._paths.get(image_id)
        if path is None:
            raise ImageError(image.problem or f"the image {image.name} has no file")
        self._pins.setdefault(image_id, collections.Counter())[cast_id] += 1
        self._rebuild()
        return OpenImage(self, self._images[image_id], path, cast_id)

    def _unpin(self, image_id: str, cast_id: str) -> None:
        pins = self._pins[image_id]
        pins[cast_id] -= 1
        if not pins[cast_id]:
            del pins[cast_id]
        if not pins:
            del self._pins[image_id]
        self._rebuild()

    async def add_remote(self, url: str, name: str, actor: str) -> Image:
        """Take an image or a prefix of images into the library."""
        raise RequestRefused(HTTPStatus.NOT_IMPLEMENTED, f"{url} can't be taken yet")

    async def fetch(self, image_id: str) -> Image:
        """Begin to fetch a remote image into the cache; returns at once."""
        return self._known(image_id)

    async def forget(self, image_id: str) -> None:
        """Forget a remote image and drop its copy."""
        raise conflict(f"{self._known(image_id).name} is in a folder: remove the file")

    def _known(self, image_id: str) -> Image:
        image = self._images.get(image_id)
        if image is None:
            raise not_found("image", image_id)
        return image

    # -- the view -------------------------------------------------------------------------------------------------

    def _rebuild(self) -> None:
        """Make the view anew from what folders, remotes and the cache say now."""
        images: dict[str, Image] = {}
        paths: dict[str, Path] = {}
        for watch in self._folders:
            for path, file in sorted(watch.files.items()):
                image = self._folder_image(path, file)
                if image.image_id in images:
                    continue  # the same image again: one copy is enough
                images[image.image_id] = image
                if file.found is not None:
                    paths[image.image_id] = path
        before = self._images
        self._images, self._paths = images, paths
        self._note(before)
        self.on_change()

    def _folder_image(self, path: Path, file: FolderFile) -> Image:
        location = printable(path)
        if file.found is not None:
            image_id = file.found.image_id
            image = file.found.as_image(location, "folder", ImageState.AVAILABLE, self._seen(image_id))
            return dataclasses.replace(image, in_use_by=self._users(image_id))
        image_id = key_of("file", str(path))
        return Image(
            image_id=image_id,
            name=printable(Path(path.stem)),
            location=location,
            source="folder",
            state=ImageState.DAMAGED,
            raw_bytes=0,
            stored_bytes=0,
            block_bytes=0,
            fetched_bytes=0,
            problem=file.problem,
            packed_at=None,
            first_seen_at=self._seen(image_id),
        )

    def _users(self, image_id: str) -> tuple[str, ...]:
        return tuple(sorted(self._pins.get(image_id, ())))

    def _seen(self, image_id: str) -> datetime:
        return self._first_seen.setdefault(image_id, datetime.now(UTC))

    # -- the store --------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """What was known before this start, if the database says so."""
        if self._store is None:
            return
        try:
            images, _ = await self._store.run(self._store.images.list)
        except DiskcastError as error:
            _log.warning("the library's records can't be read", reason=str(error))
            return
        self._first_seen.update({image.image_id: image.first_seen_at for image in images})

    def _note(self, before: dict[str, Image]) -> None:
        """Have the store told what isn't as it was."""
        for image_id, image in self._images.items():
            old = before.get(image_id)
            if ":" in image_id:  # a damaged file, or a URL that was never read: history can't name it
                continue
            if old is None or _durable(old) != _durable(image):
                self._unwritten[image_id] = _durable(image)
        for image_id in before.keys() - self._images.keys():
            gone = dataclasses.replace(
                before[image_id], state=ImageState.GONE, source="", in_use_by=(), fetched_bytes=0
            )
            self._unwritten[image_id] = gone
        if self._unwritten:
            self._write.set()

    async def _write_to_store(self) -> None:
        """Write what is unwritten, best effort: the files themselves are the truth."""
        while True:
            await self._write.wait()
            self._write.clear()
            while self._unwritten and self._store is not None:
                image_id, image = next(iter(self._unwritten.items()))
                try:
                    await self._store.run(self._store.images.put, image)
                except DiskcastError:  # the store shows its own problem
                    await asyncio.sleep(_STORE_RETRY_S)
                    continue
                if self._unwritten.get(image_id) is image:
                    del self._unwritten[image_id]
            self._unwritten.clear()


def _durable(image: Image) -> Image:
    """What of an image is worth a row of the database: not its users of the moment, nor a fetch's progress."""
    return dataclasses.replace(image, in_use_by=(), fetched_bytes=0)
