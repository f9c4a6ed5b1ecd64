"""The catalogue: every image once, from the current state of the folders, the cache and the remote locations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path

from sender.imaging.image_signature import ImageSignature
from sender.library.cached_copies import CachedCopies
from sender.library.folder import FolderFile, FolderWatch
from sender.library.image_probe import FoundImage, key_of, printable
from sender.library.pins import Pins
from sender.library.remote_watch import RemoteFile, RemoteWatch
from sender.library.signatures import ImageSignatures
from sender.store.records.images import Image, ImageState


@dataclasses.dataclass(frozen=True, slots=True)
class Catalogue:
    """The library's images, by id.

    Attributes:
        images: all images, damaged ones included.
        paths: complete files on this machine.
        signatures: signature in the file of each image that has been read.
        sources: remote files to fetch images from.
    """

    images: Mapping[str, Image]
    paths: Mapping[str, Path]
    signatures: Mapping[str, ImageSignature]
    sources: Mapping[str, RemoteFile]


class CatalogueBuilder:
    """The merger of folders, copies and remote locations into one catalogue."""

    def __init__(
        self,
        folders: Iterable[FolderWatch],
        copies: CachedCopies,
        remotes: Mapping[str, RemoteWatch],
        pins: Pins,
        signatures: ImageSignatures,
        seen: Callable[[str], datetime],
    ) -> None:
        """Use these sources.

        Args:
            folders: watched folders; a file of an earlier one is preferred.
            copies: cached copies of remote images.
            remotes: watched remote locations, by URL.
            pins: images in use.
            signatures: uploaded signatures.
            seen: returns the time at which an image was first seen.
        """
        self._folders = folders
        self._copies = copies
        self._remotes = remotes
        self._pins = pins
        self._signatures = signatures
        self._own: dict[str, ImageSignature] = {}
        self._seen = seen

    def build(self) -> Catalogue:
        """Return the current catalogue; it prefers files of folders to copies, and copies to remote files."""
        images: dict[str, Image] = {}
        paths: dict[str, Path] = {}
        self._own = {}
        self._add_folders(images, paths)
        self._add_copies(images, paths)
        sources = self._sources()
        for image_id, file in sources.items():
            if image_id not in images:
                images[image_id] = self._remote_image(image_id, file)
        return Catalogue(images, paths, self._own, sources)

    def _add_folders(self, images: dict[str, Image], paths: dict[str, Path]) -> None:
        for watch in self._folders:
            for path, file in sorted(watch.files.items()):
                image = self._folder_image(path, file)
                if image.image_id in images:
                    continue  # another file of the same image
                images[image.image_id] = image
                if file.found is not None:
                    paths[image.image_id] = path

    def _add_copies(self, images: dict[str, Image], paths: dict[str, Path]) -> None:
        for image_id, copy in self._copies.complete.items():
            if image_id not in images:
                image = self._image(copy.found, copy.origin.location, "remote", ImageState.AVAILABLE)
                images[image_id] = dataclasses.replace(image, in_use_by=self._pins.casts_of(image_id))
                paths[image_id] = copy.path

    def _sources(self) -> dict[str, RemoteFile]:
        sources: dict[str, RemoteFile] = {}
        for watch in self._remotes.values():
            files = list(watch.files.values())
            if not files and not watch.location.is_prefix:  # not scanned yet
                files = [RemoteFile(watch.location, "", None, "", transient=True)]
            for file in files:
                known = sources.get(file.image_id)
                if known is None or (known.problem and not file.problem):
                    sources[file.image_id] = file
        return sources

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
        image = self._image(file.found, file.location.shown, "remote", state)
        problem = problem or image.problem
        return dataclasses.replace(
            image, problem=problem, fetched_bytes=fetched_bytes or 0, in_use_by=self._pins.casts_of(image_id)
        )

    def _folder_image(self, path: Path, file: FolderFile) -> Image:
        location = printable(path)
        if file.found is not None:
            image_id = file.found.image_id
            image = self._image(file.found, location, "folder", ImageState.AVAILABLE)
            return dataclasses.replace(image, in_use_by=self._pins.casts_of(image_id))
        name = printable(Path(path.stem))
        return self._unread(
            key_of("file", str(path)), name, location, "folder", ImageState.DAMAGED, file.problem
        )

    def _image(self, found: FoundImage, location: str, source: str, state: ImageState) -> Image:
        self._own.setdefault(found.image_id, found.signature)
        signature = self._signatures.best(found.image_id, found.signature)
        return found.as_image(location, source, state, self._seen(found.image_id), signature)

    def _unread(
        self, image_id: str, name: str, location: str, source: str, state: ImageState, problem: str
    ) -> Image:
        """Return the record of an unreadable image."""
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
