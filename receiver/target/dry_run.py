"""Dry run: the effect of writing an image to a target, computed without changing anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import MIB
from protocol.image.manifest import BlockKind, Manifest
from protocol.shared.block_masks import iter_set_blocks
from protocol.shared.units import format_bytes
from receiver.disk.fit.fit_target import check_fit
from receiver.disk.target import Target
from receiver.disk.verifier import Verifier
from receiver.target.open_target import require_compatible
from receiver.target.options import TargetOptions

_STEP_BYTES: Final = 64 * MIB


@dataclasses.dataclass(frozen=True, slots=True)
class DryRun:
    """The work that writing the image would take."""

    image_name: str
    target: str
    target_bytes: int
    raw_bytes: int
    raw_bytes_kept: int
    """Bytes that the target holds already."""
    raw_bytes_to_zero: int
    raw_bytes_to_write: int
    blocks_to_receive: int

    def text(self) -> str:
        """Return a summary for people."""
        return (
            f"nothing was written. {self.image_name} ({format_bytes(self.raw_bytes)}) would go onto {self.target} "
            f"({format_bytes(self.target_bytes)}): {format_bytes(self.raw_bytes_to_write)} would be written and "
            f"{format_bytes(self.raw_bytes_to_zero)} zeroed; {format_bytes(self.raw_bytes_kept)} are there already"
        )


def dry_run(
    target: Target,
    manifest: Manifest,
    options: TargetOptions,
    on_progress: Callable[[int], None] = lambda _done_bytes: None,
) -> DryRun:
    """Run every check that precedes writing, and compare the target with the image; blocks.

    Raises:
        TargetError: the target would be refused.
        StorageError: the target can't be read.
    """
    require_compatible(target, manifest)
    check_fit(options.fit, target, manifest)
    missing = manifest.kind != BlockKind.UNUSED
    if options.scans and target.size_bytes:
        verifier = Verifier(target.read_back, manifest)
        step = max(1, _STEP_BYTES // manifest.block_bytes)
        for start in range(0, manifest.block_count, step):
            blocks = np.arange(start, min(start + step, manifest.block_count))
            missing[blocks] = False
            missing[verifier.missing_blocks(blocks)] = True
            on_progress(min((start + step) * manifest.block_bytes, manifest.raw_bytes))
    on_progress(manifest.raw_bytes)
    stored = manifest.stored_mask
    used = manifest.kind != BlockKind.UNUSED
    return DryRun(
        image_name=manifest.name,
        target=str(target.path),
        target_bytes=target.size_bytes,
        raw_bytes=manifest.raw_bytes,
        raw_bytes_kept=_raw_bytes_of(manifest, used & ~missing),
        raw_bytes_to_zero=_raw_bytes_of(manifest, missing & ~stored),
        raw_bytes_to_write=_raw_bytes_of(manifest, missing & stored),
        blocks_to_receive=int(np.count_nonzero(missing & stored)),
    )


def _raw_bytes_of(manifest: Manifest, mask: NDArray[np.bool_]) -> int:
    return sum(map(manifest.raw_bytes_of, iter_set_blocks(mask)))
