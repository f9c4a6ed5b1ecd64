"""Settings in a NoCloud seed, which cloud-init applies at the first boot."""

from __future__ import annotations

import dataclasses

from protocol.image.manifest import Manifest
from sender.patches.fat_seed import build_fat_seed
from sender.patches.machine_settings import MachineSettings
from sender.patches.patch_builder import SeedPlace
from sender.patches.seed import build_seed


@dataclasses.dataclass(frozen=True, slots=True)
class SeedBackend:
    """The backend for the seed partition of an image."""

    place: SeedPlace

    @property
    def manifest(self) -> Manifest:
        """Return the image's manifest."""
        return self.place.manifest

    def check(self, settings: MachineSettings) -> None:
        """Check settings; see :class:`PatchBackend`."""
        build_seed(settings)

    def changed_blocks(self, settings: MachineSettings) -> dict[int, bytes]:
        """Return the changed blocks; see :class:`PatchBackend`."""
        return self.place.changed_blocks(build_fat_seed(build_seed(settings).files, self.place.sector_bytes))
