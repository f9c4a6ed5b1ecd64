"""Tests of ``verify``: if any byte of an image is altered, its block is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import zstandard

from protocol.constants import MIB
from protocol.errors import ConfigurationError, ImageDamagedError, ImageError, ImageFormatError
from protocol.image.image_format import PAGE_BYTES
from sender.imaging.image_file import ImageFile
from sender.imaging.image_verify import BadBlock, VerifyReport, verify_image
from tests.support.disks.disk_images import BLOCK_BYTES, MadeImage, make_image

MADE = make_image("drzudzrd", tail_bytes=777)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return MADE.write(tmp_path / "made.dci")


def alter(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        octet = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([octet ^ 0x20]))


def verified(path: Path) -> VerifyReport:
    with ImageFile.open(path) as image:
        return verify_image(image, jobs=2)


def test_an_undamaged_image_has_no_bad_blocks(path: Path) -> None:
    report = verified(path)
    assert (report.block_count, report.bad_count, report.bad) == (8, 0, ())


@pytest.mark.parametrize("block", [0, 1, 4, 6, 7])
@pytest.mark.parametrize("end", ["first", "last"])
def test_an_altered_block_is_named(path: Path, block: int, end: str) -> None:
    stored_bytes = int(MADE.manifest.stored_bytes[block])
    offset = MADE.stored_offset(block)
    alter(path, offset if end == "first" else offset + stored_bytes - 1)
    report = verified(path)
    assert report.bad == (BadBlock(block, block * BLOCK_BYTES, offset, "its stored bytes were altered"),)
    with (
        ImageFile.open(path) as image,
        pytest.raises(
            ImageDamagedError,
            match=rf"block {block} \(disk offset {block * BLOCK_BYTES}, file offset {offset}\)",
        ),
    ):
        report.raise_if_bad(image)


def test_any_altered_byte_is_noticed(path: Path) -> None:
    size_bytes = path.stat().st_size
    sections = [PAGE_BYTES, 2 * PAGE_BYTES - 1, 2 * PAGE_BYTES, size_bytes - 1]
    for offset in [0, *sections, *np.random.default_rng(4).integers(0, size_bytes, 150).tolist()]:
        alter(path, offset)
        with pytest.raises(ImageError), ImageFile.open(path) as image:
            verify_image(image, jobs=1).raise_if_bad(image)
        alter(path, offset)
    assert not verified(path).bad_count


def test_altered_padding_is_noticed(path: Path) -> None:
    alter(path, 2 * PAGE_BYTES - 1)
    with pytest.raises(ImageDamagedError, match="padding"):
        verified(path)


@pytest.mark.parametrize("cut_bytes", [1, 700, 100_000])
def test_a_truncated_file_is_damaged(path: Path, cut_bytes: int) -> None:
    os.truncate(path, path.stat().st_size - cut_bytes)
    with pytest.raises(ImageDamagedError, match=f"{path}.*truncated"):
        verified(path)


def test_bytes_behind_the_image_are_noticed(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ImageDamagedError, match="behind the image"):
        verified(path)


def test_truncation_while_it_is_read(path: Path) -> None:
    with ImageFile.open(path) as image:
        os.truncate(path, MADE.stored_offset(6) + 10)
        with pytest.raises(ImageDamagedError, match="truncated"):
            verify_image(image, jobs=1)


def frames_of(made: MadeImage, block: int) -> list[tuple[bytes, str]]:
    """Return frames that an attacker could pack as ``block`` with matching hashes, and the expected reasons."""
    raw = made.raw[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
    compressor = zstandard.ZstdCompressor()
    nothing_announced = zstandard.ZstdCompressor(write_content_size=False).compress(raw)
    frame = compressor.compress(raw)
    return [
        (compressor.compress(raw[:-1]), "announces 65535 bytes, 65536 expected"),
        (compressor.compress(bytes(64 * MIB)), "announces 67108864 bytes"),
        (nothing_announced, "announces"),
        (frame + frame, "decompress"),
        (frame + b"\0", "decompress"),
        (frame[:-1], "decompress"),
        (b"not a frame", "decompress"),
    ]


@pytest.mark.parametrize("case", range(7))
def test_a_frame_that_is_not_exactly_its_block_is_named(tmp_path: Path, case: int) -> None:
    frame, reason = frames_of(make_image("rd"), 1)[case]
    report = verified(make_image("rdz", frames={1: frame}).write(tmp_path / "bad.dci"))
    assert [(bad.block, reason in bad.reason) for bad in report.bad] == [(1, True)], report.bad


@pytest.mark.parametrize(
    ("kinds", "reason"), [("zd", "raw bytes"), ("zr", "raw bytes"), ("dz", "zeros"), ("du", "zeros")]
)
def test_a_wrong_raw_hash_is_named(tmp_path: Path, kinds: str, reason: str) -> None:
    """Receivers would write the block and find it wrong at read-back."""
    made = make_image(kinds, tail_bytes=4096, raw_hashes={1: bytes(range(32))})
    report = verified(made.write(tmp_path / "bad.dci"))
    assert [(bad.block, reason in bad.reason) for bad in report.bad] == [(1, True)], report.bad


def test_many_bad_blocks_make_a_short_message(tmp_path: Path) -> None:
    made = make_image("d" * 40)
    path = made.write(tmp_path / "bad.dci")
    for block in range(0, 40, 2):
        alter(path, made.stored_offset(block) + 5)
    found: list[int] = []
    with ImageFile.open(path) as image:
        report = verify_image(image, on_bad_block=lambda bad: found.append(bad.block))
        with pytest.raises(ImageDamagedError) as caught:
            report.raise_if_bad(image)
    assert found == list(range(0, 40, 2))
    assert "20 of 40 blocks" in str(caught.value)
    assert "and 12 more" in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_progress_reaches_the_payload_size(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with ImageFile.open(path) as image:
        verify_image(
            image, on_progress=lambda done_bytes, total_bytes: seen.append((done_bytes, total_bytes))
        )
        payload_bytes = image.header.payload_bytes
    assert seen[-1] == (payload_bytes, payload_bytes)


def test_jobs_out_of_range(path: Path) -> None:
    with ImageFile.open(path) as image, pytest.raises(ConfigurationError, match="jobs"):
        verify_image(image, jobs=-1)


def test_the_manifest_outlives_the_file(path: Path) -> None:
    with ImageFile.open(path) as image:
        manifest = image.manifest
    assert manifest.data == MADE.manifest.data


def test_an_image_that_cannot_be_opened_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        ImageFile.open(tmp_path / "missing.dci")
    with pytest.raises(ImageError, match="directory"):
        ImageFile.open(tmp_path)
    (tmp_path / "empty.dci").touch()
    with pytest.raises(ImageFormatError):
        ImageFile.open(tmp_path / "empty.dci")
