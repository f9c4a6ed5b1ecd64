"""The cache: local copies of remote images, limited in size, with eviction of the least recently used."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import structlog

from protocol.constants import MIB
from protocol.errors import DiskcastError, ImageError, StorageError
from protocol.shared.units import format_bytes
from sender.library.image_probe import SUFFIX, FoundImage, examine, printable

_log = structlog.get_logger(__name__)

PARTIAL: Final = ".partial"
ORIGIN: Final = ".json"

ORIGIN_BYTES_MAX: Final = 64 * 1024
"""Size of an origin file, a URL and a version, at most."""

DISK_RESERVE_BYTES: Final = 256 * MIB
"""Space left free on the cache's disk, which often holds the database too."""


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a copy.

    Attributes:
        location: the URL without credentials.
        version: version of the file: its size, and its tag or modification time.
    """

    location: str
    version: str


@dataclasses.dataclass(frozen=True, slots=True)
class Copy:
    """A complete copy."""

    path: Path
    found: FoundImage
    origin: Origin


class Cache:
    """The copies in one folder, which belongs to this daemon. Thread-safe; all methods block.

    ``ID.dci`` is a complete copy, ``ID.partial`` an incomplete one, and ``ID.json`` has its origin.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        """Use ``directory``, without accessing it yet."""
        self.directory = directory
        self.limit_bytes = limit_bytes

    def path_of(self, image_id: str) -> Path:
        """Return the path of the complete copy of an image."""
        assert len(image_id) == 64 and image_id.isalnum(), image_id  # noqa: PT018  it becomes a file's name
        return self.directory / f"{image_id}{SUFFIX}"

    def partial_of(self, image_id: str) -> Path:
        """Return the path of the incomplete copy of an image."""
        return self.path_of(image_id).with_suffix(PARTIAL)

    def load(self) -> dict[str, Copy]:
        """Return the complete copies by image id; remove damaged ones, which can be fetched again.

        Raises:
            StorageError: the folder can't be created or read.
        """
        with self._translated():
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            paths = sorted(self.directory.glob(f"*{SUFFIX}"))
        copies: dict[str, Copy] = {}
        for path in paths:
            try:
                found = examine(path)
            except (DiskcastError, OSError) as error:
                _log.warning("damaged_copy_removed", path=printable(path), reason=str(error))
                self.remove(path.stem)
                continue
            if found.image_id == path.stem:
                copies[found.image_id] = Copy(path, found, self.origin(found.image_id))
        return copies

    def origin(self, image_id: str) -> Origin:
        """Return the origin of a copy, complete or not; an empty one if it is unknown."""
        try:
            with self.path_of(image_id).with_suffix(ORIGIN).open("rb") as file:
                data = json.loads(file.read(ORIGIN_BYTES_MAX))
            return Origin(str(data["location"]), str(data["version"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Origin("", "")

    def set_origin(self, image_id: str, origin: Origin) -> None:
        """Record the origin of a new copy.

        Raises:
            StorageError: the disk is full or failed.
        """
        path = self.path_of(image_id).with_suffix(ORIGIN)
        with self._translated():
            temporary = path.with_suffix(".json.new")
            temporary.write_text(json.dumps(dataclasses.asdict(origin)))
            temporary.replace(path)

    def touch(self, image_id: str) -> None:
        """Record a use of a copy in its access time. The modification time stays: open readers check it."""
        path = self.path_of(image_id)
        with contextlib.suppress(OSError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))

    def remove(self, image_id: str) -> None:
        """Remove the complete and the incomplete copy of an image, if they exist."""
        path = self.path_of(image_id)
        for suffix in (SUFFIX, PARTIAL, ORIGIN):
            with contextlib.suppress(OSError):
                path.with_suffix(suffix).unlink(missing_ok=True)

    def used_bytes(self) -> int:
        """Return the size of all copies, complete or not.

        Raises:
            StorageError: the folder can't be read.
        """
        return sum(size for _, size in self._by_age().values())

    def make_room(
        self,
        found: FoundImage,
        *,
        promised_bytes: int,
        may_evict: Callable[[str], bool],
    ) -> None:
        """Remove the least recently used copies until ``found`` fits into the cache and onto its disk.

        Args:
            found: image that is about to be fetched, or is fetched in part.
            promised_bytes: bytes that other running fetches still need.
            may_evict: returns False for an image whose copy is in use or being fetched.

        Raises:
            ImageError: the image is larger than the cache, or doesn't fit beside the copies in use.
            StorageError: the folder can't be read.
        """
        if found.stored_bytes > self.limit_bytes:
            raise ImageError(
                f"the image {found.name} of {format_bytes(found.stored_bytes)} is larger than the cache of "
                f"{format_bytes(self.limit_bytes)}: raise library.cache_size, or put the image into a folder"
            )
        sizes = self._by_age()
        have = sizes.get(found.image_id, (0.0, 0))[1]
        missing = found.stored_bytes - have + promised_bytes
        used = sum(size for _, size in sizes.values())
        free = self._disk_free() - DISK_RESERVE_BYTES
        for image_id, (_, size) in sorted(sizes.items(), key=lambda item: item[1][0]):
            if used + missing <= self.limit_bytes and missing <= free:
                return
            if image_id == found.image_id or not may_evict(image_id):
                continue
            _log.info("copy_evicted", image_id=image_id, bytes=size)
            self.remove(image_id)
            used -= size
            free = self._disk_free() - DISK_RESERVE_BYTES
        if used + missing > self.limit_bytes:
            raise ImageError(
                f"the image {found.name} of {format_bytes(found.stored_bytes)} doesn't fit into the cache: "
                f"{format_bytes(used + promised_bytes)} of its {format_bytes(self.limit_bytes)} are in use by casts or "
                "being fetched; wait for them, or raise library.cache_size"
            )
        if missing > free:
            raise ImageError(
                f"the disk of the cache {printable(self.directory)} is too full for the image {found.name}: it needs "
                f"{format_bytes(missing)}, and {format_bytes(max(0, free))} are free beside a reserve of "
                f"{format_bytes(DISK_RESERVE_BYTES)}; free some, or move library.cache_directory"
            )

    def _disk_free(self) -> int:
        with self._translated():
            return shutil.disk_usage(self.directory).free

    def _by_age(self) -> dict[str, tuple[float, int]]:
        """Return time of the last use and size of each copy, complete or not, by image id."""
        found: dict[str, tuple[float, int]] = {}
        with self._translated(), os.scandir(self.directory) as entries:
            for entry in entries:
                image_id, suffix = os.path.splitext(entry.name)  # noqa: PTH122  an entry's name, not a path
                if suffix not in (SUFFIX, PARTIAL) or len(image_id) != 64:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    used_at, size = found.get(image_id, (0.0, 0))
                    # A fetch appends to its file, so the size is the count of fetched bytes.
                    found[image_id] = max(used_at, status.st_atime), size + status.st_size
        return found

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"the image cache {printable(self.directory)} is unusable: {error.strerror}; check its disk or correct "
                "library.cache_directory"
            ) from error
