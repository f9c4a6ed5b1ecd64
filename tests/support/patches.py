"""Machine patches and signed sets of them, for tests."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np

from protocol.image.block_codec import BlockDecoder
from protocol.image.manifest import BlockKind, Manifest
from protocol.patch.machine_patch import MachinePatch, build_patch
from protocol.patch.patch_set import PatchSet, SignedPatchSet
from protocol.trust.image_policy import AcceptedImage
from protocol.trust.secret_key import SecretKey
from protocol.trust.statement import PATCH_PARTITIONS, ImageStatement, PatchPolicy
from protocol.trust.trusted_keys import VerifiedImage
from tests.support.disks.disk_images import MadeImage
from tests.support.signing import SIGNER, TRUSTED, signed_bytes

MACHINE = "pc-07"


def make_patch(
    manifest: Manifest, blocks: dict[int, str], *, machine_id: str = MACHINE, seed: int = 7
) -> MachinePatch:
    """Return a patch that gives each block data (``d``), random bytes (``r``) or zeros (``z``)."""
    rng = np.random.default_rng(seed)
    contents = {}
    for block, letter in blocks.items():
        length = manifest.raw_length(block)
        contents[block] = {
            "d": lambda size: rng.integers(1, 9, size, np.uint8).tobytes(),
            "r": rng.bytes,
            "z": bytes,
        }[letter](length)
    return build_patch(
        manifest.image_id,
        machine_id,
        raw_bytes=manifest.raw_bytes,
        block_bytes=manifest.block_bytes,
        contents=contents,
    )


def contents_of(patch: MachinePatch) -> dict[int, bytes]:
    """Return the raw bytes of each patched block."""
    decoder, found = BlockDecoder(), {}
    for row, block in enumerate(patch.blocks.tolist()):
        kind, length = BlockKind(int(patch.kind[row])), patch.raw_length(row)
        found[block] = (
            bytes(length)
            if kind is BlockKind.ZERO
            else bytes(decoder.decode_untrusted(kind, patch.stored(row), length))
        )
    return found


def patched(raw: bytes, patch: MachinePatch) -> bytes:
    """Return the disk ``raw`` with the patched blocks."""
    disk = bytearray(raw)
    for block, content in contents_of(patch).items():
        disk[block * patch.block_bytes : block * patch.block_bytes + len(content)] = content
    return bytes(disk)


def signed_set(
    patches: list[MachinePatch],
    *,
    name: str = "lab",
    key: SecretKey = SIGNER,
    not_after: datetime.datetime | None = None,
) -> SignedPatchSet:
    """Return a signed set of patches of one image."""
    patch_set = PatchSet(
        patches[0].image_id, name, {patch.machine_id: patch.patch_id for patch in patches}, not_after
    )
    return SignedPatchSet(signed_bytes(patch_set.statement(), key), patch_set.lines())


def statement_of(made: MadeImage, patches: PatchPolicy, partitions: str | None = "all") -> ImageStatement:
    """Return a statement that allows patches; None as ``partitions`` names none."""
    extensions = () if partitions is None else ((PATCH_PARTITIONS, partitions),)
    return ImageStatement(
        made.manifest.image_id, made.manifest.name, 1, patches=patches, extensions=extensions
    )


def accepted(made: MadeImage, patches: PatchPolicy, partitions: str | None = "all") -> AcceptedImage:
    """Return an image that a machine accepted by its signature."""
    statement = statement_of(made, patches, partitions)
    return AcceptedImage(statement.image_id, statement.name, VerifiedImage(statement, TRUSTED))


def write_patch(folder: Path, patch: MachinePatch) -> Path:
    """Create the file of a patch."""
    path = folder / f"{patch.machine_id}.dcp"
    path.write_bytes(patch.data)
    return path
