"""Uploads of other programs' images: converted in the sandbox, and refused with the kind of the failure."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from protocol.constants import MIB
from protocol.errors import ForeignImageError, SandboxUnavailableError, SourceError
from sender.imaging.image_file import ImageFile
from tests.api.served import Served, serve
from tests.api.test_image_files import ended, leftovers, put, start
from tests.support.disks.foreign_images import compress_disk, make_virtual_disk
from tests.support.network.lab import diskcast, run

PART_BYTES = 4 * MIB


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with serve(
        folder, library__folders=(str(folder / "state" / "images"), str(folder / "images"))
    ) as started:
        yield started


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    disk = tmp_path_factory.mktemp("disk") / "disk.raw"
    disk.write_bytes(np.random.default_rng(7).bytes(5 * MIB) + bytes(3 * MIB))
    return disk


def upload(api: httpx.Client, path: Path, **more: object) -> dict[str, object]:
    """Upload a whole file, and return the ended upload."""
    data = path.read_bytes()
    begun = start(api, len(data), file_name=path.name, **more)
    for offset in range(0, len(data), PART_BYTES):
        put(api, begun, offset, data[offset : offset + PART_BYTES]).raise_for_status()
    return ended(api, begun)


@pytest.mark.parametrize(
    ("kind", "format_name"),
    [
        ("qcow2", "qcow2"),
        ("qcow2 compressed", "qcow2"),
        ("vmdk", "vmdk"),
        ("vmdk streamOptimized", "vmdk"),
        ("vhd dynamic", "vhd"),
        ("vhdx", "vhdx"),
        ("vdi", "vdi"),
    ],
)
def test_a_virtual_disk_becomes_an_image(
    api: httpx.Client, own: Path, raw: Path, tmp_path: Path, kind: str, format_name: str
) -> None:
    foreign = make_virtual_disk(raw, tmp_path / "disk.img", kind)
    found = upload(api, foreign, name=kind.replace(" ", "-"))
    assert found["state"] == "done", found
    assert found["exit_code"] == 0
    image = api.get(f"/images/{found['image_id']}").json()
    assert image["name"] == kind.replace(" ", "-")
    assert Path(image["location"]).parent == own
    with ImageFile.open(Path(image["location"])) as opened:
        assert opened.manifest.metadata["provenance"]["format"] == format_name
    run(*diskcast("unpack", image["location"], tmp_path / "target"))
    compared = run("qemu-img", "compare", "-f", "raw", tmp_path / "target", foreign)
    assert "Images are identical." in compared
    assert leftovers(own) == []


@pytest.mark.parametrize("kind", ["zstd", "xz", "gzip"])
def test_a_compressed_raw_disk_becomes_an_image(
    api: httpx.Client, own: Path, raw: Path, tmp_path: Path, kind: str
) -> None:
    found = upload(api, compress_disk(raw, tmp_path / f"disk.raw.{kind}", kind), name=f"{kind}-disk")
    assert found["state"] == "done", found
    image = api.get(f"/images/{found['image_id']}").json()
    run(*diskcast("unpack", image["location"], tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == raw.read_bytes()
    assert leftovers(own) == []


def test_a_format_that_the_client_names_isnt_detected(api: httpx.Client, raw: Path, tmp_path: Path) -> None:
    """A guest can write another format's header into its first sector."""
    foreign = make_virtual_disk(raw, tmp_path / "disk.img", "qcow2")
    size = foreign.stat().st_size
    found = upload(api, foreign, name="as-raw", format="raw")
    assert found["state"] == "done", found
    assert api.get(f"/images/{found['image_id']}").json()["raw_bytes"] == size
    assert (
        api.post("/images/uploads", json={"file_name": "x", "total_bytes": 1, "format": "fog"}).status_code
        == 422
    )


def refused(api: httpx.Client, own: Path, path: Path) -> dict[str, object]:
    found = upload(api, path)
    assert found["state"] == "failed", found
    assert found["exit_code"] == ForeignImageError.exit_code, found
    assert str(own) not in str(found["problem"])
    assert leftovers(own) == []
    return found


def test_an_image_that_names_other_files_is_refused(
    api: httpx.Client, own: Path, raw: Path, tmp_path: Path
) -> None:
    """Plain qemu-img would copy the daemon's files into an image that the client downloads."""
    path = tmp_path / "lab.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", path, str(8 * MIB)], check=True
    )
    assert "backing file" in str(refused(api, own, path)["problem"])
    path.unlink()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", path, "8M"],
        check=True,
    )
    assert "lab.qcow2" in str(refused(api, own, path)["problem"])


def test_the_parts_of_a_vmdk_arent_taken_from_the_library(
    api: httpx.Client, own: Path, tmp_path: Path
) -> None:
    """Otherwise a descriptor of some lines makes an image of any file that lies beside it."""
    (own / "secret.img").write_bytes(b"secret" * MIB)
    path = tmp_path / "lab.vmdk"
    path.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        'createType="monolithicFlat"\nRW 2048 FLAT "secret.img" 0\nddb.adapterType = "ide"\n' + "#" * 4096
    )
    found = upload(api, path)
    assert found["state"] == "failed", found
    assert found["exit_code"] in (ForeignImageError.exit_code, SourceError.exit_code)
    assert leftovers(own) == []
    (own / "secret.img").unlink()


def test_a_size_bomb_is_refused(api: httpx.Client, own: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "60T"], check=True)
    problem = str(refused(api, own, path)["problem"])
    assert "60" in problem
    assert "upload the .dci file" in problem  # the daemon has no --max-size


def test_an_archive_is_refused_at_its_first_part(api: httpx.Client, own: Path) -> None:
    """Otherwise the client sends 100 GB first."""
    begun = start(api, 100 * PART_BYTES, file_name="lab.zip")
    answer = put(api, begun, 0, b"PK\x03\x04" + os.urandom(PART_BYTES - 4))
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"].startswith("lab.zip is a zip archive")
    found = api.get(f"/images/uploads/{begun['upload_id']}").json()
    assert (found["state"], found["exit_code"]) == ("failed", ForeignImageError.exit_code)
    assert leftovers(own) == []


def test_without_landlock_a_foreign_image_needs_consent(
    api: httpx.Client, own: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.program.sandbox.landlock_version", lambda: -1)
    found = upload(api, make_virtual_disk(raw, tmp_path / "disk.img", "qcow2"))
    assert (found["state"], found["exit_code"]) == ("failed", SandboxUnavailableError.exit_code)
    assert "library.allow_unsandboxed" in str(found["problem"])
    assert leftovers(own) == []


def test_progress_has_a_rate_and_an_eta(api: httpx.Client) -> None:
    begun = start(api, 4 * MIB, file_name="slow.raw")
    assert (begun["state"], begun["eta_s"], begun["rate_bytes_per_s"]) == ("receiving", None, 0)
    offset, shown = 0, begun
    while shown["eta_s"] is None and offset < 3 * MIB:
        shown = put(api, begun, offset, bytes(16 << 10)).raise_for_status().json()
        offset += 16 << 10
    assert shown["eta_s"] >= 0
    assert shown["rate_bytes_per_s"] > 0
    assert shown["progress"] == pytest.approx(offset / (4 * MIB))
    api.delete(f"/images/uploads/{begun['upload_id']}").raise_for_status()
