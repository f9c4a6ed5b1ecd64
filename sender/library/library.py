"""The daemon's images by id: what the folders, the remote locations and the cache have, in one view."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import structlog

from protocol.errors import ConfigurationError, DiskcastError, ImageDamagedError, ImageError
from sender.daemon.requests import conflict, invalid, not_found
from sender.library.cache import Cache
from sender.library.copies import Copies
from sender.library.fetch import BACK_OFF_S
from sender.library.folder import SETTLE_S, FolderFile, FolderWatch
from sender.library.found import key_of, printable
from sender.library.location import Location, parse_location
from sender.library.remote import RemoteFiles
from sender.library.remote_watch import INTERVAL_S, RemoteFile, RemoteWatch
from sender.store.records import Image, ImageState, Problem

if TYPE_CHECKING:
    from sender.daemon.config import LibrarySection
    from sender.daemon.requests import Actor
    from sender.store.audit import AuditNote
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

RECORDS_MAX: Final = 20_000
"""Images of the past that are looked through at the start: a few MB."""

_RECORDS_PAGE: Final = 500

_KNOWN_POLL_S: Final = 0.05
"""Only in the first moments after the start."""

ADDED_MAX: Final = 1000
"""Remote images that were added one by one; each costs a request a minute."""


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

    def __init__(
        self,
        config: LibrarySection,
        store: Store | None,
        *,
        settle_s: float = SETTLE_S,
        remote_interval_s: float = INTERVAL_S,
        back_off_s: float = BACK_OFF_S,
    ) -> None:
        """Nothing is looked at before :meth:`run`.

        Args:
            config: the section ``library``.
            store: keeps what was known over restarts; the library works while it fails.
            settle_s: a file that isn't a whole image may still be written for so long after its last change.
            remote_interval_s: between two looks at what is remote.
            back_off_s: before the first repetition of a fetch that failed.

        Raises:
            ConfigurationError: one of ``config.remotes`` can't be used.
        """
        self.on_change: Callable[[], None] = lambda: None
        self._config = config
        self._store = store
        self._folders = [
            FolderWatch(folder, on_change=self._rebuild, settle_s=settle_s) for folder in config.folders
        ]
        self._remote_interval_s = remote_interval_s
        self._remote_files = RemoteFiles()
        self._copies = Copies(
            Cache(config.cache_directory, config.cache_bytes),
            self._remote_files,
            on_change=self._rebuild,
            back_off_s=back_off_s,
        )
        self._remotes: dict[str, RemoteWatch] = {}
        self._remote_tasks: dict[str, asyncio.Task[None]] = {}
        self._sources: dict[str, RemoteFile] = {}
        self._added: set[str] = set()
        self._recorded: list[Image] = []
        self._problem_since: dict[str, datetime] = {}
        for url in config.remotes:
            self._take(parse_location(url), "")
        self._images: dict[str, Image] = {}
        self._paths: dict[str, Path] = {}
        self._pins: dict[str, collections.Counter[str]] = {}
        self._first_seen: dict[str, datetime] = {}
        self._unwritten: dict[str, Image] = {}
        self._write = asyncio.Event()
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Watch until cancelled."""
        self._make_own_folder()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write_to_store())
                first = [group.create_task(watch.look()) for watch in self._folders]
                for watch in self._folders:
                    group.create_task(watch.watch(self._config.scan_interval_s))
                await self._load()
                await self._copies.load()
                for remote in self._remotes.values():
                    self._watch(remote)
                if first:
                    await asyncio.wait(first, timeout=READY_S)
                self._ready.set()
                self._note_gone()
        finally:
            for task in self._remote_tasks.values():
                task.cancel()
            await self._copies.stop()
            self._remote_files.close()

    def _make_own_folder(self) -> None:
        """Make the default folder, which lies beside the cache; any other may be a mount that is missing."""
        for watch in self._folders:
            if watch.folder.parent == self._config.cache_directory.parent:
                with contextlib.suppress(OSError):  # its watch says what is wrong
                    watch.folder.mkdir(parents=True, exist_ok=True)

    def _take(self, location: Location, name: str) -> None:
        self._remotes[location.url] = RemoteWatch(
            self._remote_files, location, name=name, on_change=self._rebuild
        )

    def _watch(self, watch: RemoteWatch) -> None:
        self._remote_tasks[watch.location.url] = asyncio.create_task(watch.watch(self._remote_interval_s))

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
        found += [watch.problem for watch in self._remotes.values()]
        texts = [image.problem for image in self._images.values() if image.problem]
        if self._copies.problem:
            texts.append(self._copies.problem)
        now = datetime.now(UTC)
        self._problem_since = {text: self._problem_since.get(text, now) for text in texts}
        found += [Problem("library", text, since) for text, since in self._problem_since.items()]
        return [problem for problem in found if problem is not None]

    async def scan(self) -> None:
        """Look at everything now; returns when that is done, or after :data:`SCAN_S`."""
        watches: list[FolderWatch | RemoteWatch] = [*self._folders, *self._remotes.values()]
        looks = [asyncio.ensure_future(watch.look()) for watch in watches]
        try:
            if looks:
                await asyncio.wait(looks, timeout=SCAN_S)
        finally:
            for look in looks:
                look.cancel()

    # -- use ------------------------------------------------------------------------------------------------------

    async def open(self, image_id: str, cast_id: str) -> OpenImage:
        """Pin an image for a cast, so that nothing evicts it; a remote one is fetched first, and checked.

        Returns:
            To be closed when the cast doesn't need the image any more.

        Raises:
            ImageError: there is no such image, it is damaged, can't be fetched, or doesn't fit into the cache.
            StorageError: the cache's disk failed.
        """
        await self._wait_until_known(image_id)
        self._pins.setdefault(image_id, collections.Counter())[cast_id] += 1
        self._copies.pin(image_id)
        try:
            self._rebuild()
            path = self._paths.get(image_id)
            if path is None:
                path = (await self._copies.wait_for(self._source(image_id))).path
            self._copies.touch(image_id)
            return OpenImage(self, self._images[image_id], path, cast_id)
        except BaseException:
            self._unpin(image_id, cast_id)
            raise

    async def _wait_until_known(self, image_id: str) -> None:
        """At the start an image may be found a moment later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                while image_id not in self._paths and not self._ready.is_set():
                    await asyncio.sleep(_KNOWN_POLL_S)
                while image_id not in self._images and not self._looked():
                    await asyncio.sleep(_KNOWN_POLL_S)

    def _looked(self) -> bool:
        return all(watch.looked.is_set() for watch in self._remotes.values())

    def _source(self, image_id: str) -> RemoteFile:
        """Where an image that isn't here can be fetched from.

        Raises:
            ImageError: nowhere.
        """
        image = self._images.get(image_id)
        if image is None:
            raise ImageError(
                f"the image {image_id} isn't in the library: put its file back into a folder of library.folders"
            )
        source = self._sources.get(image_id)
        if source is None or source.damaged:
            raise ImageDamagedError(image.problem)
        if source.found is None:
            raise ImageError(image.problem or f"{image.location} wasn't read yet: try again in a moment")
        return source

    def _unpin(self, image_id: str, cast_id: str) -> None:
        self._copies.unpin(image_id)
        pins = self._pins[image_id]
        pins[cast_id] -= 1
        if not pins[cast_id]:
            del pins[cast_id]
        if not pins:
            del self._pins[image_id]
        self._rebuild()

    async def add_remote(self, url: str, name: str = "", actor: Actor | None = None) -> Image:
        """Take the image behind a URL into the library.

        Args:
            url: of one image; a prefix belongs into ``library.remotes``.
            name: what it is called until it could be read.
            actor: who asks, for audit.

        Returns:
            The image, as far as its server answers now.

        Raises:
            RequestRefused: the URL can't be used, or what is there isn't an image.
            DatabaseError: it can't be kept; nothing was added.
        """
        try:
            location = parse_location(url)
        except ConfigurationError as error:
            raise invalid(error) from error
        if "@" in location.url.partition("://")[2].partition("/")[0]:
            raise invalid(
                f"{location.shown}: leave user and password out: they belong into ~/.netrc of the daemon's user"
            )
        if location.is_prefix:
            raise invalid(
                f"{location.shown} stands for many images: add it to library.remotes of the configuration"
            )
        if location.url not in self._remotes:
            if len(self._added) >= ADDED_MAX:
                raise conflict(
                    f"{ADDED_MAX} images were added by URL: forget some, or configure their prefix"
                )
            watch = RemoteWatch(self._remote_files, location, name=name[:64], on_change=self._rebuild)
            await watch.look()
            file = watch.files[location.url]
            if file.problem and not file.passing:
                raise invalid(file.problem)
            if self._store is not None:
                note = _audit_note(actor, "image.add", None)
                await self._store.run(self._store.images.add_remote, location.url, watch.name, audit=note)
            if location.url not in self._remotes:
                self._added.add(location.url)
                self._remotes[location.url] = watch
                self._watch(watch)
                self._rebuild()
        return self._known(self._remotes[location.url].image_id)

    async def fetch(self, image_id: str) -> Image:
        """Begin to fetch a remote image into the cache; returns at once.

        Raises:
            RequestRefused: there is no such image, or it can't be fetched now.
        """
        image = self._known(image_id)
        if image_id not in self._paths:
            try:
                self._copies.start(self._source(image_id))
            except ImageError as error:
                raise conflict(str(error)) from error
            image = self._known(image_id)
        return image

    async def forget(self, image_id: str, actor: Actor | None = None) -> None:
        """Drop the copy of a remote image, and forget the image if it was added by :meth:`add_remote`.

        Raises:
            RequestRefused: there is no such image, a cast uses it, it is a file of a folder, or the configuration has
                it and there is no copy.
            DatabaseError: it can't be forgotten; nothing was changed.
        """
        image = self._known(image_id)
        if image.source == "folder":
            raise conflict(f"{image.name} is a file of a watched folder: remove {image.location}")
        if image.in_use_by:
            raise conflict(
                f"{image.name} is used by cast {', '.join(image.in_use_by)}: wait for its end, or cancel it"
            )
        watches = [self._remotes[url] for url in self._added]
        watches = [watch for watch in watches if watch.image_id == image_id]
        held = image_id in self._copies.whole or self._copies.fetched_bytes(image_id) is not None
        if not watches and not held:
            raise conflict(f"{image.location} is in library.remotes of the configuration: remove it there")
        for watch in watches:
            url = watch.location.url
            if self._store is not None:
                note = _audit_note(actor, "image.forget", image)
                await self._store.run(self._store.images.remove_remote, url, audit=note)
            self._added.discard(url)
            self._remotes.pop(url, None)
            if (task := self._remote_tasks.pop(url, None)) is not None:
                task.cancel()
        if self._store is not None and not watches and actor is not None:
            detail: dict[str, object] = {"name": image.name}
            add = functools.partial(self._store.audit.add, detail=detail, request_id=actor.request_id)
            await self._store.run(add, actor.name, "image.forget", f"image {image_id}")
        if ":" not in image_id:
            await self._copies.drop(image_id)
        self._rebuild()

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
        self._add_copies(images, paths)
        self._add_remotes(images)
        before = self._images
        self._images, self._paths = images, paths
        self._note(before)
        self.on_change()

    def _add_copies(self, images: dict[str, Image], paths: dict[str, Path]) -> None:
        for image_id, copy in self._copies.whole.items():
            if image_id not in images:
                seen = self._seen(image_id)
                image = copy.found.as_image(copy.origin.location, "remote", ImageState.AVAILABLE, seen)
                images[image_id] = dataclasses.replace(image, in_use_by=self._users(image_id))
                paths[image_id] = copy.path

    def _add_remotes(self, images: dict[str, Image]) -> None:
        self._sources = {}
        for watch in self._remotes.values():
            files = list(watch.files.values())
            if not files and not watch.location.is_prefix:  # it was never looked at
                files = [RemoteFile(watch.location, "", None, "", passing=True)]
            for file in files:
                known = self._sources.get(file.image_id)
                if known is None or (known.problem and not file.problem):
                    self._sources[file.image_id] = file
        for image_id, file in self._sources.items():
            if image_id not in images:
                images[image_id] = self._remote_image(image_id, file)

    def _remote_image(self, image_id: str, file: RemoteFile) -> Image:
        problem, state = file.problem, ImageState.DAMAGED if file.damaged else ImageState.REMOTE
        failure = self._copies.failures.get(image_id)
        if failure is not None and (not failure.damaged or failure.version == file.version):
            problem = problem or failure.text
            state = ImageState.DAMAGED if failure.damaged else state
        if file.found is None:
            watch = self._remotes.get(file.location.url)
            name = (watch.name if watch is not None else "") or file.location.file_name
            return self._unread(image_id, name, file.location.shown, "remote", state, problem)
        fetched_bytes = self._copies.fetched_bytes(image_id)
        if fetched_bytes is not None:
            state = ImageState.FETCHING
        image = file.found.as_image(file.location.shown, "remote", state, self._seen(image_id))
        return dataclasses.replace(
            image, problem=problem, fetched_bytes=fetched_bytes or 0, in_use_by=self._users(image_id)
        )

    def _folder_image(self, path: Path, file: FolderFile) -> Image:
        location = printable(path)
        if file.found is not None:
            image_id = file.found.image_id
            image = file.found.as_image(location, "folder", ImageState.AVAILABLE, self._seen(image_id))
            return dataclasses.replace(image, in_use_by=self._users(image_id))
        name = printable(Path(path.stem))
        return self._unread(
            key_of("file", str(path)), name, location, "folder", ImageState.DAMAGED, file.problem
        )

    def _unread(
        self, image_id: str, name: str, location: str, source: str, state: ImageState, problem: str
    ) -> Image:
        """The record of what couldn't be read."""
        return Image(
            image_id=image_id,
            name=name,
            location=location,
            source=source,
            state=state,
            raw_bytes=0,
            stored_bytes=0,
            block_bytes=0,
            fetched_bytes=0,
            problem=problem,
            packed_at=None,
            first_seen_at=self._seen(image_id),
        )

    def _users(self, image_id: str) -> tuple[str, ...]:
        return tuple(sorted(self._pins.get(image_id, ())))

    def _seen(self, image_id: str) -> datetime:
        return self._first_seen.setdefault(image_id, datetime.now(UTC))

    # -- the store --------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """What was known before this start, as soon as the database says so."""
        if self._store is None:
            return
        try:
            self._recorded = await self._read_records(self._store)
            remotes = await self._store.run(self._store.images.remotes)
        except DiskcastError as error:
            _log.warning("library_records_unreadable", reason=str(error))
            return
        self._first_seen.update({image.image_id: image.first_seen_at for image in self._recorded})
        for url, name in remotes:
            try:
                location = parse_location(url)
            except ConfigurationError as error:
                _log.warning("remote_image_ignored", reason=str(error))
                continue
            if location.url not in self._remotes:
                self._added.add(location.url)
                self._take(location, name)
        self._rebuild()

    async def _read_records(self, store: Store) -> list[Image]:
        images: list[Image] = []
        after: str | None = None
        while len(images) < RECORDS_MAX:
            page, after = await store.run(store.images.list, after, _RECORDS_PAGE)
            images += page
            if after is None:
                break
        return images

    def _note_gone(self) -> None:
        """Have the store told of the files that vanished from our folders while no daemon ran."""
        folders = {printable(watch.folder) for watch in self._folders if watch.problem is None}
        for image in self._recorded:
            ours = image.source == "folder" and str(Path(image.location).parent) in folders
            if ours and image.image_id not in self._images:
                self._unwritten[image.image_id] = dataclasses.replace(image, state=ImageState.GONE, source="")
        self._recorded = []
        self._write.set()

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


def _audit_note(actor: Actor | None, action: str, image: Image | None) -> AuditNote | None:
    from sender.store.audit import AuditNote

    if actor is None:
        return None
    detail = {"image_id": image.image_id, "name": image.name} if image is not None else {}
    return AuditNote(actor.name, action, actor.request_id, detail)
