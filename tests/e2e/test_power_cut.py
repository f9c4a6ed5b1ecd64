"""Power cuts in the middle of imaging, after which the disk has lost its cache.

A failure here means a half-imaged machine that boots, or one that the same command can't finish.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.disks.bootable_disk import make_bootable_disk
from tests.support.disks.power_cuts import (
    Recording,
    SmallImage,
    make_small_image,
    record_cast,
    record_restore,
    with_changed_blocks,
    with_patch,
)
from tests.support.disks.write_log import PowerCut

pytestmark = pytest.mark.needs_root

PREFIX_COUNT = 24
"""Prefixes drawn from each recording; the soak test checks all of them."""
CHANGED_BLOCKS = [3, 17, 25, 26, 40, 79]
"""Changed blocks of an older image: in the first MiB, in a filesystem, in the data, and in the backup table."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> SmallImage:
    return make_small_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def other_disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return another system's bootable disk."""
    return make_bootable_disk(tmp_path_factory.mktemp("other") / "disk.raw", seed=2)


def assert_every_cut_is_survived(recording: Recording, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    cuts = recording.cuts
    prefixes = cuts.suffixes_dropped()
    drawn: list[PowerCut] = [
        *cuts.at_flushes(),
        *rng.sample(prefixes, min(PREFIX_COUNT, len(prefixes))),
        *cuts.torn(rng, 1),
        *cuts.reordered(rng, 2),
    ]
    assert recording.judge(drawn, folder) == []


@pytest.mark.parametrize("is_device", [True, False], ids=["device", "file"])
def test_restore_over_another_system(
    image: SmallImage, other_disk: bytes, tmp_path: Path, is_device: bool
) -> None:
    recording = record_restore(tmp_path, image, other_disk, is_device=is_device)
    assert_every_cut_is_survived(recording, tmp_path, seed=1)


def test_restore_into_a_new_file(image: SmallImage, tmp_path: Path) -> None:
    recording = record_restore(tmp_path, image, b"", is_device=False)
    assert_every_cut_is_survived(recording, tmp_path, seed=2)


def test_restore_over_last_weeks_image(image: SmallImage, tmp_path: Path) -> None:
    base = with_changed_blocks(image.raw, CHANGED_BLOCKS)
    recording = record_restore(tmp_path, image, base, is_device=True)
    assert_every_cut_is_survived(recording, tmp_path, seed=3)


@pytest.mark.parametrize("is_device", [True, False], ids=["device", "file"])
def test_cast_over_another_system(
    image: SmallImage, other_disk: bytes, tmp_path: Path, is_device: bool
) -> None:
    recording = record_cast(tmp_path, image, other_disk, is_device=is_device)
    assert_every_cut_is_survived(recording, tmp_path, seed=4)


PATCHED = {0: "d", 3: "r", 25: "d", 40: "z", 41: "d", 79: "r"}
"""Blocks of a machine patch, in the first MiB, in a filesystem, in the data, and in the backup table."""


@pytest.mark.parametrize("over_clone", [True, False], ids=["the image without a patch", "another system"])
def test_restore_with_a_machine_patch(
    image: SmallImage, other_disk: bytes, tmp_path: Path, over_clone: bool
) -> None:
    """A disk that is complete without its patch would be one more clone with the golden image's name."""
    recording = record_restore(
        tmp_path, with_patch(image, PATCHED), image.raw if over_clone else other_disk, is_device=True
    )
    assert_every_cut_is_survived(recording, tmp_path, seed=5)


def test_cast_with_a_machine_patch(image: SmallImage, other_disk: bytes, tmp_path: Path) -> None:
    recording = record_cast(tmp_path, with_patch(image, PATCHED), other_disk, is_device=True)
    assert_every_cut_is_survived(recording, tmp_path, seed=6)
