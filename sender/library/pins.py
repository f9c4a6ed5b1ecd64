"""Pins: images in use by casts, which aren't evicted from the cache."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from sender.store.records.images import Image


class Pins:
    """Counts of uses of images by casts; a cast may use an image several times."""

    def __init__(self) -> None:
        self._casts: dict[str, collections.Counter[str]] = {}

    def add(self, image_id: str, cast_id: str) -> None:
        """Count a use of an image by a cast."""
        self._casts.setdefault(image_id, collections.Counter())[cast_id] += 1

    def remove(self, image_id: str, cast_id: str) -> None:
        """Release a use of an image by a cast."""
        casts = self._casts[image_id]
        casts[cast_id] -= 1
        if not casts[cast_id]:
            del casts[cast_id]
        if not casts:
            del self._casts[image_id]

    def casts_of(self, image_id: str) -> tuple[str, ...]:
        """Return the ids of the casts that use an image."""
        return tuple(sorted(self._casts.get(image_id, ())))


class OpenImage:
    """A pinned image in use by a cast. A context manager.

    Attributes:
        image: record of the image when it was opened.
        path: path of the complete file on this machine.
    """

    def __init__(self, image: Image, path: Path, release: Callable[[], None]) -> None:
        """Use :meth:`sender.library.library.Library.open`."""
        self.image = image
        self.path = path
        self._release = release
        self._closed = False

    def close(self) -> None:
        """Unpin the image; idempotent."""
        if not self._closed:
            self._closed = True
            self._release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
