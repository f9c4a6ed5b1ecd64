"""The backend that a template asks for."""

from __future__ import annotations

from sender.imaging.image_file import ImageFile
from sender.patches.backends.ext4_backend import Ext4Backend
from sender.patches.backends.fat_backend import FatBackend
from sender.patches.backends.ntfs_backend import NtfsBackend
from sender.patches.backends.patch_backend import PatchBackend
from sender.patches.backends.seed_backend import SeedBackend
from sender.patches.patch_builder import SeedPlace
from sender.patches.template import Template
from sender.patches.template_fields import BackendKind


def open_backend(image: ImageFile, template: Template) -> PatchBackend:
    """Return the backend of a template for an open image; close the image after its last use.

    Raises:
        ConfigurationError: the image can't be patched in that way.
        DiskcastError: it is damaged, or a disk failed.
    """
    place = template.filesystem
    if place is None:
        return SeedBackend(SeedPlace.of(image.manifest))
    match place.kind:
        case BackendKind.EXT4:
            return Ext4Backend(image, place.partition)
        case BackendKind.FAT:
            return FatBackend(image, place.partition)
        case BackendKind.NTFS:
            return NtfsBackend(image, place.partition)
    raise AssertionError(place.kind)
