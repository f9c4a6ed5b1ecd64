"""Tests of images with a seed partition: made by ``pack`` or from an image, the result is the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from protocol.constants import MIB
from protocol.disk.disk_layout import layout_of
from protocol.disk.seed_partition import SEED_PARTITION_BYTES, SEED_PARTITION_NAME
from protocol.errors import ConfigurationError, ImageDamagedError
from sender.console.images import images
from sender.imaging.image_commands import inspect, pack
from sender.imaging.image_file import ImageFile
from sender.imaging.image_verify import verify_image
from sender.imaging.pack import PackOptions, pack_image
from sender.imaging.seed.prepare_image import prepare_image
from sender.imaging.sign_command import sign
from tests.support.disks.bootable_disk import make_bootable_disk
from tests.support.disks.disk_images import make_image
from tests.unit.sender.imaging.test_pack import raw_of


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Return a partitioned golden disk."""
    path = tmp_path / "lab.raw"
    make_bootable_disk(path, 1)
    return path


@pytest.fixture
def image(disk: Path, tmp_path: Path) -> Path:
    """Return the image of the golden disk."""
    return pack_image(disk, tmp_path / "lab.dci", PackOptions()).path


def prepared(image: Path, output: Path) -> Path:
    with ImageFile.open(image) as opened:
        return prepare_image(opened, output).path


def test_pack_and_prepare_make_the_same_image(disk: Path, image: Path, tmp_path: Path) -> None:
    packed = pack_image(disk, tmp_path / "packed.dci", PackOptions(seed_partition=True))
    assert prepared(image, tmp_path / "prepared.dci").read_bytes() == packed.path.read_bytes()


def test_the_disk_keeps_its_partitions_and_gets_one_more(image: Path, tmp_path: Path) -> None:
    before = raw_of(image)
    path = prepared(image, tmp_path / "prepared.dci")
    raw = tmp_path / "prepared.raw"
    raw.write_bytes(raw_of(path))
    report = subprocess.run(["sgdisk", "--verify", raw], capture_output=True, text=True, check=True).stdout
    assert "No problems found" in report
    with ImageFile.open(image) as old, ImageFile.open(path) as new:
        assert not verify_image(new).bad_count
        old_layout, new_layout = layout_of(old.manifest.metadata), layout_of(new.manifest.metadata)
        number = new.manifest.metadata["seed_partition"]
    assert old_layout is not None
    assert new_layout is not None
    seed = new_layout.partitions[-1]
    assert new_layout.partitions[:-1] == old_layout.partitions
    assert (seed.number, seed.name, seed.size_bytes) == (number, SEED_PARTITION_NAME, SEED_PARTITION_BYTES)
    after = raw.read_bytes()
    for part in old_layout.partitions:
        assert after[part.start_bytes : part.stop_bytes] == before[part.start_bytes : part.stop_bytes]
    assert not any(after[seed.start_bytes : seed.stop_bytes])


@pytest.mark.parametrize("kinds", ["drz", "zud"])
def test_an_image_without_a_partition_table_is_refused(kinds: str, tmp_path: Path) -> None:
    path = make_image(kinds).write(tmp_path / "plain.dci")
    with pytest.raises(ConfigurationError, match=r"plain\.dci: the disk has no partition table"):
        prepared(path, tmp_path / "out.dci")
    assert not (tmp_path / "out.dci").exists()


def test_a_damaged_block_gets_no_new_id(image: Path, tmp_path: Path) -> None:
    with ImageFile.open(image) as opened:
        sizes, place = opened.manifest.stored_bytes, opened.header.payload_offset
        block = int((sizes[8:] > 0).argmax()) + 8  # behind the blocks of the partition table
        place += opened.manifest.offset_of(block)
    with image.open("r+b") as file:
        file.seek(place + 100)
        byte = file.read(1)
        file.seek(place + 100)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ImageDamagedError, match=f"block {block} no longer has the bytes"):
        prepared(image, tmp_path / "out.dci")
    assert not (tmp_path / "out.dci").exists()


def test_evidence_and_prepared_images_are_refused(disk: Path, image: Path, tmp_path: Path) -> None:
    again = prepared(image, tmp_path / "prepared.dci")
    with pytest.raises(ConfigurationError, match="already has a seed partition"):
        prepared(again, tmp_path / "out.dci")
    evidence = pack_image(disk, tmp_path / "evidence.dci", PackOptions(every_byte=True)).path
    with pytest.raises(ConfigurationError, match="is evidence"):
        prepared(evidence, tmp_path / "out.dci")
    with pytest.raises(ConfigurationError, match="leave out --seed-partition"):
        pack_image(disk, tmp_path / "out.dci", PackOptions(every_byte=True, seed_partition=True))


def test_a_sparse_disk_that_grows_is_packed_completely(tmp_path: Path) -> None:
    disk = tmp_path / "sparse.raw"
    with disk.open("wb") as file:
        file.truncate(40 * MIB)
    subprocess.run(["sgdisk", "--new=1:1M:39M", disk], capture_output=True, check=True)
    with disk.open("r+b") as file:
        file.seek(20 * MIB + 12345)
        file.write(b"content")
    path = pack_image(disk, tmp_path / "sparse.dci", PackOptions(seed_partition=True)).path
    raw = raw_of(path)
    assert len(raw) == 45 * MIB
    assert raw[MIB : 39 * MIB] == disk.read_bytes()[MIB : 39 * MIB]


def result_of(command: Any, *arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    fields: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return fields


def test_the_commands_sign_the_source_of_patches(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path, ready = tmp_path / "lab.dci", tmp_path / "ready.dci"
    packed = result_of(pack, disk, "-o", path, "--image-version", "7", "--tag", "lab", "--json")
    assert packed["signature"]["patches"] == "none"
    result = result_of(images, "prepare", path, "-o", ready, "--patches", "daemon", "--json")
    signature = result_of(inspect, ready, "--json")["signature"]
    assert (signature["patches"], signature["tags"], signature["extensions"]) == ("daemon", ["lab"], {})
    assert result["image_id"] != packed["image_id"]
    signed = result_of(sign, ready, "--patches", "signed", "--patch-partitions", "3, 1", "--json")[
        "signature"
    ]
    assert (signed["patches"], signed["extensions"]) == ("signed", {"x-patch-partitions": "1,3"})
    # Signing again for another reason keeps the policy; revoking it removes the partitions.
    kept = result_of(sign, ready, "--image-version", "9", "--json")["signature"]
    assert (kept["patches"], kept["extensions"]) == ("signed", {"x-patch-partitions": "1,3"})
    revoked = result_of(sign, ready, "--patches", "none", "--json")["signature"]
    assert (revoked["patches"], revoked["extensions"]) == ("none", {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--patch-partitions", "1"), "has no effect on an image that accepts no patches"),
        (("--patches", "daemon", "--patch-partitions", "0"), "give numbers of partitions"),
        (("--patches", "daemon", "--patch-partitions", "root"), "give numbers of partitions"),
    ],
)
def test_partitions_without_a_meaning_are_refused(
    options: tuple[str, ...], message: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with pytest.raises(ConfigurationError, match=message):
        CliRunner().invoke(sign, [str(image), *options], catch_exceptions=False)
