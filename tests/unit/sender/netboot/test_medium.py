"""The boot medium's record: a damaged or incomplete medium is refused before any machine boots from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from sender.netboot.medium import (
    FIRMWARE,
    INITRD,
    KERNEL,
    RECORD,
    BootMedium,
    Flavour,
    Loader,
    MediumRecord,
    record_files,
)


def make_medium(folder: Path, *names: str) -> MediumRecord:
    """Write a medium with these files, and return its record."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    record = MediumRecord(
        diskcast_version="0.2.0",
        architecture="amd64",
        flavour=Flavour.CLOUD,
        suite="bookworm",
        kernel_release="6.1.0-57-cloud-amd64",
        root_sha256="ab" * 32,
        lock_sha256="cd" * 32,
        servers=("https://10.0.0.5:7400",),
        pins=("mfrg",),
        trusted_keys=(),
        files=record_files(folder),
        parts_bytes={"kernel modules": 5},
    )
    (folder / RECORD).write_text(record.to_json())
    return record


def test_a_medium_opens_with_what_was_recorded(tmp_path: Path) -> None:
    record = make_medium(tmp_path, KERNEL, INITRD, Loader.SHIM)
    medium = BootMedium.open(tmp_path)
    assert medium.record == record
    medium.verify()
    assert medium.path(Loader.SHIM).read_text() == f"content of {Loader.SHIM}"
    assert medium.initrds == (INITRD,)
    with pytest.raises(ConfigurationError, match="has no firmware: build it with `diskcast netboot build"):
        medium.path(FIRMWARE)


def test_firmware_follows_the_initrd(tmp_path: Path) -> None:
    make_medium(tmp_path, KERNEL, INITRD, FIRMWARE)
    assert BootMedium.open(tmp_path).initrds == (INITRD, FIRMWARE)


def test_an_interrupted_build_is_no_medium(tmp_path: Path) -> None:
    make_medium(tmp_path, KERNEL, INITRD)
    (tmp_path / RECORD).unlink()
    with pytest.raises(ConfigurationError, match="isn't a boot medium"):
        BootMedium.open(tmp_path)


def test_a_missing_short_or_altered_file_is_named(tmp_path: Path) -> None:
    make_medium(tmp_path, KERNEL, INITRD)
    initrd = tmp_path / INITRD
    content = initrd.read_bytes()
    initrd.write_bytes(content[::-1])
    with pytest.raises(ConfigurationError, match="initrd was altered"):
        BootMedium.open(tmp_path).verify()
    initrd.write_bytes(content[:-1])
    with pytest.raises(
        ConfigurationError, match=f"initrd has {len(content) - 1} bytes instead of {len(content)}"
    ):
        BootMedium.open(tmp_path)
    initrd.unlink()
    with pytest.raises(ConfigurationError, match="initrd: No such file"):
        BootMedium.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"format": 2}, "format 1"),
        ({"root_sha256": "x"}, "root_sha256 is malformed"),
        ({"flavour": "desktop"}, "desktop"),
        ({"files": {"../x": {"size_bytes": 1, "sha256": "ab" * 32}}}, "isn't a path in the medium"),
        ({"files": {"x": {"size_bytes": "1", "sha256": "ab" * 32}}}, "size or SHA-256 of x is malformed"),
        ({"files": {"x": {"size_bytes": 1}}}, "missing or malformed"),
        ({"files": []}, "missing or malformed"),
    ],
)
def test_a_malformed_record_is_refused_with_its_cause(
    tmp_path: Path, change: dict[str, object], cause: str
) -> None:
    record = json.loads(make_medium(tmp_path, KERNEL).to_json())
    (tmp_path / RECORD).write_text(json.dumps(record | change))
    with pytest.raises(ConfigurationError, match=cause):
        BootMedium.open(tmp_path)
