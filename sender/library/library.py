"""The library: the daemon's images, from the folders, the remote locations and the cache."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack

from protocol.errors import ImageDamagedError, ImageError
from protocol.trust.statement import SignedStatement
from sender.blocking_calls import start_blocking_call
from sender.imaging.image_signature import ImageSignature
from sender.library.cache import Cache
from sender.library.cached_copies import CachedCopies
from sender.library.catalogue import Catalogue, CatalogueBuilder
from sender.library.entries.image_entries import LibraryEntries
from sender.library.entries.image_inspection import ImageInspection
from sender.library.fetch import BACK_OFF_S
from sender.library.folder import SETTLE_S, FolderWatch
from sender.library.image_probe import printable
from sender.library.image_records import ImageRecords
from sender.library.pins import OpenImage, Pins
from sender.library.remote_files import RemoteFiles
from sender.library.remote_registry import RemoteRegistry
from sender.library.remote_watch import INTERVAL_S, RemoteFile, RemoteWatch
from sender.library.signatures import ImageSignatures
from sender.refusals import conflict, not_found
from sender.store.records.images import Image, matching_images
from sender.store.records.problems import Problem, ProblemKind

if TYPE_CHECKING:
    from sender.actors import Actor
    from sender.config.sections import LibrarySection
    from sender.store.repositories.image_entries import EntryUpdate
    from sender.store.store import Store

READY_S: Final = 30.0
"""Time limit for the first scan of the folders, during which :meth:`Library.open` waits for an unknown image."""

SCAN_S: Final = 10.0
"""Time limit of :meth:`Library.scan`; the scan of a slow file server continues after it."""

_NAMED_MAX: Final = 8
"""Images that an error lists."""

_KNOWN_POLL_S: Final = 0.05
"""Polling interval during the first scans."""


class Library:
    """All images. Not thread-safe: use it on the event loop.

    Attributes:
        on_change: called after every change of :meth:`images` or :meth:`problems`; can be set at any time.
        entries: version numbers, notes and origins.
        inspection: contents and differences of images.
    """

    def __init__(
        self,
        config: LibrarySection,
        store: Store | None,
        *,
        settle_s: float = SETTLE_S,
        remote_interval_s: float = INTERVAL_S,
        back_off_s: float = BACK_OFF_S,
    ) -> None:
        """Create the library; :meth:`run` starts the scans.

        Args:
            config: the section ``library``.
            store: keeps records of images across restarts; the library works without it.
            settle_s: time without a change after which an incomplete file counts as damaged.
            remote_interval_s: interval between scans of remote locations.
            back_off_s: delay before the first retry of a failed fetch.

        Raises:
            ConfigurationError: one of ``config.remotes`` is invalid.
        """
        self.on_change: Callable[[], None] = lambda: None
        self._config = config
        self._store = store
        self._folders = [
            FolderWatch(folder, on_change=self._rebuild, settle_s=settle_s) for folder in config.folders
        ]
        self._remote_files = RemoteFiles(config.remotes)
        self._copies = CachedCopies(
            Cache(config.cache_directory, config.cache_bytes),
            self._remote_files,
            on_change=self._rebuild,
            back_off_s=back_off_s,
        )
        self._remotes = RemoteRegistry(self._remote_files, remote_interval_s, on_change=self._rebuild)
        for url in config.remotes:
            self._remotes.configure(url)
        self._pins = Pins()
        self._records = ImageRecords(store)
        self._signatures = ImageSignatures(store, self._rebuild)
        self.entries = LibraryEntries(store, self._rebuild)
        self.inspection = ImageInspection(store, self.path_of)
        self._builder = CatalogueBuilder(
            self._folders,
            self._copies,
            self._remotes.watches,
            self._pins,
            self._signatures,
            self._records.seen,
        )
        self._catalogue = Catalogue({}, {}, {}, {})
        self._problem_since: dict[str, datetime] = {}
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Scan all locations, until cancelled."""
        self._create_own_folder()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._records.write())
                group.create_task(self._signatures.run())
                group.create_task(self.entries.run())
                group.create_task(self.inspection.run())
                first = [group.create_task(watch.scan()) for watch in self._folders]
                for watch in self._folders:
                    group.create_task(watch.watch(self._config.scan_interval_s))
                for url, name in await self._records.load():
                    self._remotes.restore(url, name)
                self._rebuild()
                await self._copies.load()
                self._remotes.start()
                if first:
                    await asyncio.wait(first, timeout=READY_S)
                self._ready.set()
                readable = {printable(watch.folder) for watch in self._folders if watch.problem is None}
                self._records.note_gone(readable, self._catalogue.images)
        finally:
            self._remotes.stop()
            await self._copies.stop()
            self._remote_files.close()

    def _create_own_folder(self) -> None:
        """Create the default folder beside the cache; any other folder may be a missing mount."""
        if (folder := self.own_folder) is not None:
            with contextlib.suppress(OSError):  # its watch reports the error
                folder.mkdir(parents=True, exist_ok=True)

    # -- catalogue ------------------------------------------------------------------------------------------------

    def images(self) -> list[Image]:
        """Return all images by name, damaged ones included."""
        return sorted(
            self._catalogue.images.values(), key=lambda image: (image.name.casefold(), image.image_id)
        )

    def get(self, image_id: str) -> Image | None:
        """Return an image by its full id, or None."""
        return self._catalogue.images.get(image_id)

    def path_of(self, image_id: str) -> Path | None:
        """Return the complete file of an image on this machine; None if there is none."""
        return self._catalogue.paths.get(image_id)

    def resolve(self, text: str) -> Image:
        """Return the image with this id, name, version of a name, or start of an id: see :func:`matching_images`.

        Raises:
            RequestRefusedError: no image matches (404), or several do (409; the text lists them).
        """
        match matching_images(self._catalogue.images.values(), text):
            case []:
                raise not_found("image", text)
            case [image]:
                return image
            case several:
                listed = ", ".join(
                    f"{image.name} ({image.image_id[:12]}, {image.location})"
                    for image in several[:_NAMED_MAX]
                )
                raise conflict(f"{text!r} matches {len(several)} images: {listed}; use the start of an id")

    def problems(self) -> list[Problem]:
        """Return the current problems of all locations and images."""
        found = [watch.problem for watch in self._folders]
        found += [watch.problem for watch in self._remotes.watches.values()]
        texts = [image.problem for image in self._catalogue.images.values() if image.problem]
        if self._copies.problem:
            texts.append(self._copies.problem)
        now = datetime.now(UTC)
        self._problem_since = {text: self._problem_since.get(text, now) for text in texts}
        found += [Problem(ProblemKind.LIBRARY, text, since) for text, since in self._problem_since.items()]
        return [problem for problem in found if problem is not None]

    async def scan(self) -> None:
        """Scan all locations now; return when the scans are finished, or after :data:`SCAN_S`."""
        watches: list[FolderWatch | RemoteWatch] = [*self._folders, *self._remotes.watches.values()]
        scans = [asyncio.ensure_future(watch.scan()) for watch in watches]
        try:
            if scans:
                await asyncio.wait(scans, timeout=SCAN_S)
        finally:
            for scan in scans:
                scan.cancel()

    # -- use ------------------------------------------------------------------------------------------------------

    async def open(self, image_id: str, cast_id: str) -> OpenImage:
        """Pin an image for a cast, which protects it from eviction; fetch and verify a remote one first.

        Returns:
            The open image. Close it to unpin the image.

        Raises:
            ImageError: the image doesn't exist, is damaged, can't be fetched, or doesn't fit into the cache.
            StorageError: the cache's disk failed.
        """
        await self._wait_until_known(image_id)
        self._pins.add(image_id, cast_id)
        self._copies.pin(image_id)
        try:
            self._rebuild()
            path = self._catalogue.paths.get(image_id)
            if path is None:
                path = (await self._copies.wait_for(self._source(image_id))).path
            self._copies.touch(image_id)
            await self._signatures.refresh()
            release = functools.partial(self._unpin, image_id, cast_id)
            return OpenImage(self._catalogue.images[image_id], path, release)
        except BaseException:
            self._unpin(image_id, cast_id)
            raise

    def signature(self, image_id: str) -> ImageSignature:
        """Return the signature of an image: the one in its file, or a later one that an operator uploaded.

        Raises:
            RequestRefusedError: the image doesn't exist, or hasn't been read.
        """
        return self._signatures.best(image_id, self._own_signature(image_id))

    def best_signature(self, image_id: str, own: ImageSignature) -> ImageSignature:
        """Return ``own``, the signature in an opened file, or a later one that an operator uploaded."""
        return self._signatures.best(image_id, own)

    async def sign(
        self, image_id: str, signed: SignedStatement, public_key: str, actor: Actor
    ) -> ImageSignature:
        """Keep a signature that an operator made for an image.

        Raises:
            RequestRefusedError: the image doesn't exist, or the signature isn't a valid one of a higher version.
            DatabaseError: it can't be recorded.
        """
        own = self._own_signature(image_id)
        audit = actor.note(
            "image.sign",
            name=self._known(image_id).name,
            statement=signed.statement.decode("ascii", "replace"),
        )
        return await self._signatures.upload(image_id, own, signed, public_key, audit)

    def _own_signature(self, image_id: str) -> ImageSignature:
        image = self._known(image_id)
        own = self._catalogue.signatures.get(image_id)
        if own is None:
            raise conflict(f"{image.name} hasn't been read yet: {image.problem or 'try again in a moment'}")
        return own

    async def _wait_until_known(self, image_id: str) -> None:
        """Wait for an image that the first scans may still find."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                while image_id not in self._catalogue.paths and not self._ready.is_set():
                    await asyncio.sleep(_KNOWN_POLL_S)
                while image_id not in self._catalogue.images and not self._remotes.scanned:
                    await asyncio.sleep(_KNOWN_POLL_S)

    def _source(self, image_id: str) -> RemoteFile:
        """Return the remote file to fetch an image from.

        Raises:
            ImageError: the image has no usable source.
        """
        image = self._catalogue.images.get(image_id)
        if image is None:
            raise ImageError(
                f"the image {image_id} isn't in the library: put its file back into a folder of library.folders"
            )
        source = self._catalogue.sources.get(image_id)
        if source is None or source.damaged:
            raise ImageDamagedError(image.problem)
        if source.found is None:
            raise ImageError(image.problem or f"{image.location} hasn't been read yet: try again in a moment")
        return source

    def _unpin(self, image_id: str, cast_id: str) -> None:
        self._copies.unpin(image_id)
        self._pins.remove(image_id, cast_id)
        self._rebuild()

    async def add_remote(self, url: str, name: str = "", actor: Actor | None = None) -> Image:
        """Add the image behind a URL to the library.

        Args:
            url: URL of one image; a prefix belongs in ``library.remotes``.
            name: name of the image until it is readable.
            actor: requester, for the audit log.

        Returns:
            The image, described as far as its server answers.

        Raises:
            RequestRefusedError: the URL is invalid, or the file there isn't an image.
            DatabaseError: the image can't be recorded; nothing was added.
        """
        watch = await self._remotes.probe(url, name[:64])
        if watch.location.url not in self._remotes.watches:
            if self._store is not None:
                note = None if actor is None else actor.note("image.add")
                await self._store.run(
                    self._store.images.add_remote, watch.location.url, watch.name, audit=note
                )
            self._remotes.add(watch)
            self._rebuild()
        image = self._known(self._remotes.watches[watch.location.url].image_id)
        if actor is not None and ":" not in image.image_id:
            await self.entries.enter(image.image_id, image.name, actor.name)
        return self._known(image.image_id)

    async def change(self, image_id: str, actor: Actor, **fields: Unpack[EntryUpdate]) -> Image:
        """Change note or pin of an image.

        Raises:
            RequestRefusedError: the image doesn't exist, or hasn't been read.
            DatabaseError: the change can't be recorded.
        """
        await self.entries.change(self._known(image_id), actor.note(), **fields)
        return self._known(image_id)

    async def fetch(self, image_id: str) -> Image:
        """Start to fetch a remote image into the cache; return at once.

        Raises:
            RequestRefusedError: the image doesn't exist, or can't be fetched now.
        """
        image = self._known(image_id)
        if image_id not in self._catalogue.paths:
            try:
                self._copies.start(self._source(image_id))
            except ImageError as error:
                raise conflict(str(error)) from error
            image = self._known(image_id)
        return image

    async def forget(self, image_id: str, actor: Actor | None = None) -> None:
        """Remove the copy of a remote image, and the image itself if :meth:`add_remote` added it.

        Raises:
            RequestRefusedError: the image doesn't exist, is in use, is a file of a folder, or is configured and has no
                copy.
            DatabaseError: the removal can't be recorded; nothing was changed.
        """
        image = self._known(image_id)
        if image.source == "folder":
            raise conflict(f"{image.name} is a file of a watched folder: remove {image.location}")
        if image.in_use_by:
            raise conflict(
                f"{image.name} is used by cast {', '.join(image.in_use_by)}: wait for its end, or cancel it"
            )
        watches = self._remotes.added_of(image_id)
        has_copy = image_id in self._copies.complete or self._copies.fetched_bytes(image_id) is not None
        if not watches and not has_copy:
            raise conflict(f"{image.location} is in library.remotes of the configuration: remove it there")
        for watch in watches:
            url = watch.location.url
            if self._store is not None:
                note = (
                    None if actor is None else actor.note("image.forget", image_id=image_id, name=image.name)
                )
                await self._store.run(self._store.images.remove_remote, url, audit=note)
            self._remotes.remove(url)
        if self._store is not None and not watches and actor is not None:
            detail: dict[str, object] = {"name": image.name}
            add = functools.partial(self._store.audit.add, detail=detail, request_id=actor.request_id)
            await self._store.run(add, actor.name, "image.forget", f"image {image_id}")
        if ":" not in image_id:
            await self._copies.drop(image_id)
        self._rebuild()

    @property
    def own_folder(self) -> Path | None:
        """The daemon's own folder, beside the cache: the only one in which it creates and deletes files."""
        parent = self._config.cache_directory.parent
        return next((watch.folder for watch in self._folders if watch.folder.parent == parent), None)

    def is_own(self, image: Image) -> bool:
        """Return whether the daemon may delete the file of an image: a regular file of its folder or cache."""
        path = self.path_of(image.image_id)
        if path is None or path.is_symlink():
            return False
        return path.parent == (self.own_folder if image.source == "folder" else self._config.cache_directory)

    async def delete_own(self, image_id: str) -> None:
        """Delete the file of an image that :meth:`is_own` allows; a remote image stays in the library.

        Raises:
            RequestRefusedError: the image is in use, or the file doesn't belong to the daemon.
            OSError: it can't be deleted.
        """
        image, path = self._known(image_id), self.path_of(image_id)
        if path is None or not self.is_own(image):
            raise conflict(
                f"{image.name}: {image.location} isn't in a folder of the daemon: remove it yourself"
            )
        if self._pins.casts_of(image_id):
            raise conflict(f"{image.name} is used by a cast: wait for its end, or cancel it")
        if image.source != "folder":
            await self._copies.drop(image_id)
            return
        # Without a wait since the check: a cast that opens the image from now on doesn't find it.
        doomed = path.with_name(f".{path.name}.pruned")
        path.rename(doomed)
        await start_blocking_call(doomed.unlink, "library pruning")

    def _known(self, image_id: str) -> Image:
        image = self._catalogue.images.get(image_id)
        if image is None:
            raise not_found("image", image_id)
        return image

    def _rebuild(self) -> None:
        """Build the catalogue again, and record its changes."""
        built = self._builder.build()
        images = self.entries.completed(built.images)
        before, self._catalogue = self._catalogue, dataclasses.replace(built, images=images)
        self._records.note(before.images, images)
        self.entries.note_new(images.values())
        self.on_change()
