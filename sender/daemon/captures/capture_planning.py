"""The choices of a new capture: its base image and its file."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Final

from sender.library.library import Library
from sender.refusals import conflict
from sender.store.records.captures import CapturePlan
from sender.store.records.images import Image, ImageState

_SUFFIX: Final = ".dci"
_NAME_TRIES_MAX: Final = 1000


def choose_base_image(library: Library, plan: CapturePlan) -> str:
    """Return the id of the base image: the newest local one of the same name, unless the plan has one; "" for none.

    Raises:
        RequestRefusedError: the plan's can't be used.
    """
    if plan.base_image_id:
        image = library.get(plan.base_image_id)
        if image is None or not _is_usable(image, plan):
            raise conflict(
                f"the image {plan.base_image_id} can't be a base: it isn't on this daemon's disk, or it has "
                "blocks of another size"
            )
        return plan.base_image_id
    named = [image for image in library.images() if image.name == plan.name and _is_usable(image, plan)]
    newest = max(named, key=lambda image: image.packed_at or image.first_seen_at, default=None)
    return "" if newest is None else newest.image_id


def choose_path(folder: Path, name: str, taken: Set[str]) -> Path:
    """Return a path in ``folder`` that no image has, no partial file belongs to, and isn't ``taken``.

    Raises:
        RequestRefusedError: there are too many images of that name.
    """
    plain = (
        "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in name).strip(" .")
        or "disk"
    )
    for number in range(1, _NAME_TRIES_MAX):
        path = folder / (f"{plain}{_SUFFIX}" if number == 1 else f"{plain}-{number}{_SUFFIX}")
        if str(path) not in taken and not path.exists() and not partial_path(path).exists():
            return path
    raise conflict(f"{folder} has {_NAME_TRIES_MAX} images named {plain}: remove some")


def partial_path(path: Path) -> Path:
    """Return the path of the partial file of an image."""
    return path.with_name(f".{path.name}.partial")


def _is_usable(image: Image, plan: CapturePlan) -> bool:
    return image.state is ImageState.AVAILABLE and image.block_bytes == plan.block_bytes
