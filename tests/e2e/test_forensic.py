"""A forensic image of a disk with bad sectors: the report lists exactly those, and sha256sum proves the copy."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from protocol.constants import MIB
from protocol.errors import ConfigurationError, SourceError
from protocol.trust.minisign import parse_signature_untrusted, verify
from sender.imaging.image_file import ImageFile
from tests.support.disks.slow_disk import Action, Behaviour, Fault, Operation, loop_over, slow_disk
from tests.support.network.lab import REPOSITORY, diskcast
from tests.support.signing import SIGNER, signing_environment

pytestmark = pytest.mark.needs_root

_SECTOR: Final = 512
_DISK_BYTES: Final = 9 * MIB
_BAD: Final = ((5 * _SECTOR, 1), (MIB + 7 * _SECTOR, 3), (4 * MIB - _SECTOR, 2), (_DISK_BYTES - _SECTOR, 1))
"""Offsets and numbers of bad sectors: alone, several, across two spans, and the last one."""


@contextlib.contextmanager
def failing_disk(folder: Path, content: bytes) -> Iterator[Path]:
    """Provide a block device of ``content`` with bad sectors."""
    faults = tuple(
        Fault(Operation.READ, Action.ERROR, start_bytes=start, stop_bytes=start + count * _SECTOR)
        for start, count in _BAD
    )
    with slow_disk(folder, Behaviour()) as disk:
        (disk.storage / "disk").write_bytes(content)
        with loop_over(disk.directory / "disk") as device:
            disk.set_behaviour(Behaviour(faults=faults))
            yield device


def pack(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        diskcast("pack", *arguments, "--json"),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **signing_environment()},
        timeout=300,
        check=False,
    )


def test_report_lists_exactly_the_bad_sectors_and_sha256sum_proves_the_copy(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(_DISK_BYTES)
    zeroed = bytearray(content)
    for start, count in _BAD:
        zeroed[start : start + count * _SECTOR] = bytes(count * _SECTOR)
    image_path = tmp_path / "evidence.dci"
    with failing_disk(tmp_path, content) as device:
        refused = pack(device, "-o", image_path, "--every-byte")
        assert refused.returncode == SourceError.exit_code
        assert f"{_SECTOR} bytes at offset {_BAD[0][0]}" in refused.stdout
        assert not image_path.exists()
        deployable = pack(device, "-o", image_path, "--zero-bad-sectors")
        assert deployable.returncode == ConfigurationError.exit_code
        done = pack(device, "-o", image_path, "--every-byte", "--zero-bad-sectors")
        assert done.returncode == 0, done.stdout + done.stderr

    expected = [{"offset": start, "length": count * _SECTOR} for start, count in _BAD]
    digest = hashlib.sha256(zeroed).hexdigest()
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["metadata"]["bad_ranges"]["ranges"] == expected
    assert result["metadata"]["source_sha256"] == digest

    report_path = tmp_path / "evidence.dci.acquisition.json"
    report = json.loads(report_path.read_text())
    assert report["bad_ranges"] == expected
    assert report["bad_bytes"] == 7 * _SECTOR
    assert report["sha256"] == digest
    assert report["image"]["image_id"] == result["image_id"]
    assert report["source"]["raw_bytes"] == _DISK_BYTES
    assert report["source"]["is_device"]
    assert report["started"] <= report["ended"]
    text_path = report_path.with_suffix(".txt")
    assert all(
        f"{row['length']} bytes at offset {row['offset']}" in text_path.read_text() for row in expected
    )
    for path in (report_path, text_path):
        signature = parse_signature_untrusted(path.with_name(f"{path.name}.minisig").read_text())
        assert verify(path.read_bytes(), signature, SIGNER.public)

    output = tmp_path / "evidence.raw"
    subprocess.run(diskcast("export", image_path, "-o", output), cwd=REPOSITORY, check=True)
    assert subprocess.run(
        ["sha256sum", output], capture_output=True, text=True, check=True
    ).stdout.startswith(digest)
    with ImageFile.open(image_path):
        pass
    subprocess.run(diskcast("verify", image_path), cwd=REPOSITORY, check=True)


def test_healthy_disk_gives_an_empty_list(tmp_path: Path) -> None:
    source = tmp_path / "disk"
    source.write_bytes(random.Random(4).randbytes(MIB))
    done = pack(source, "-o", tmp_path / "a.dci", "--every-byte", "--no-sign")
    assert done.returncode == 0, done.stdout
    report = json.loads((tmp_path / "a.dci.acquisition.json").read_text())
    assert (report["bad_ranges"], report["retried_sectors"]) == ([], 0)
    assert sorted(path.name for path in tmp_path.glob("a.dci.*")) == [
        "a.dci.acquisition.json",
        "a.dci.acquisition.txt",
    ]
