"""An image with a machine patch, as one source of blocks; and the files of a patch on this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

from protocol.errors import PatchRefusedError
from protocol.image.manifest import Manifest
from protocol.patch.effective_manifest import effective_manifest, machine_digest
from protocol.patch.machine_patch import PATCH_BYTES_MAX, MachinePatch, parse_patch_untrusted
from protocol.patch.patch_permission import PatchGrounds, require_permitted
from protocol.patch.patch_set import PATCH_SET_BYTES_MAX, SignedPatchSet
from receiver.restore.image_source import ImageSource
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.image_gate import ImageGate


class BlockSource(Protocol):
    """The blocks of a disk to write: an image's, or those of an image with a patch."""

    @property
    def name(self) -> str:
        """Path or URL, for messages."""

    @property
    def manifest(self) -> Manifest:
        """Manifest of the disk."""

    def read_stored(self, block: int, buffer: memoryview) -> memoryview:
        """Read a block's stored bytes as :meth:`ImageSource.read_stored`."""


class PatchedImage:
    """An image whose patched blocks come from the patch.

    Attributes:
        name: the image's.
        manifest: the effective manifest.
    """

    def __init__(self, image: ImageSource, patch: MachinePatch) -> None:
        """Overlay ``image``.

        Raises:
            PatchRefusedError: the patch is for another image.
        """
        self.name = image.name
        self.manifest = effective_manifest(image.manifest, patch)
        self._image = image
        self._patch = patch

    def read_stored(self, block: int, buffer: memoryview) -> memoryview:
        """Return a block's stored bytes, from the patch or the image's file."""
        row = self._patch.row_of(block)
        return self._image.read_stored(block, buffer) if row is None else self._patch.stored(row)


@dataclasses.dataclass(frozen=True, slots=True)
class PatchChoice:
    """The operator's choice of a patch for a restore.

    Attributes:
        path: the patch.
        set_path: the signed set that it belongs to; None without one.
        machine_ids: ids of the machine that the disk is for.
        trust: the keys that sign images and sets.
    """

    path: Path
    set_path: Path | None
    machine_ids: frozenset[str]
    trust: TrustOptions

    def permitted(self, image: ImageSource) -> MachinePatch:
        """Return the patch, if ``image``'s signed statement allows it; here the operator's command is the word.

        Raises:
            PatchRefusedError: it isn't allowed, or can't be read.
            TrustError: the image isn't accepted.
        """
        patch = read_patch(self.path)
        gate = ImageGate(self.trust)
        accepted = gate.accept_offered(image.offered)
        patch_set = None
        if self.set_path is not None:
            signed_set = SignedPatchSet.from_bytes_untrusted(_read(self.set_path, PATCH_SET_BYTES_MAX))
            patch_set = gate.verified_patch_set(signed_set)
        grounds = PatchGrounds(accepted, self.machine_ids, patch_set=patch_set)
        require_permitted(patch, image.manifest, grounds)
        return patch


def read_patch(path: Path) -> MachinePatch:
    """Read a patch and check it in itself; whether it may be applied is another question.

    Raises:
        PatchRefusedError: it is damaged, or the file can't be read.
    """
    return parse_patch_untrusted(_read(path, PATCH_BYTES_MAX))


def patch_fields(patch: MachinePatch | None) -> dict[str, str]:
    """Return the fields of a result that name a patch; none without one."""
    if patch is None:
        return {}
    digest = machine_digest(patch.image_id, patch.patch_id)
    return {
        "machine_id": patch.machine_id,
        "patch_id": patch.patch_id.hex(),
        "machine_digest": digest.hex(),
    }


def _read(path: Path, bytes_max: int) -> bytes:
    """Read a file, and one byte more than it may have, so that its parser refuses a larger one."""
    try:
        with path.open("rb") as file:
            return file.read(bytes_max + 1)
    except OSError as error:
        raise PatchRefusedError(
            f"can't read {path}: {error.strerror}; name a file of a machine patch"
        ) from error
