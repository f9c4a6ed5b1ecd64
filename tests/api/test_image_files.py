"""Uploads and downloads of images: checked, continued after an interruption, and clean after a failure."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sender.library.upkeep import image_uploads
from sender.store.records.access import Role
from tests.api.served import Served, serve
from tests.support.disks.disk_images import MadeImage, make_image
from tests.support.network.lab import LIMIT_S, diskcast

BYTES = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    own = folder / "state" / "images"
    own.mkdir(parents=True)
    (own / ".upload-0123456789abcdef").mkdir()
    (own / ".upload-0123456789abcdef/file").write_bytes(b"of a killed daemon")
    (own / ".upload-0123456789abcdef/.file.dci.partial").write_bytes(b"of a killed daemon")
    (own / ".lab.dci.partial").write_bytes(b"of a capture")
    with serve(folder, library__folders=(str(own), str(folder / "images"))) as started:
        yield started


def start(api: httpx.Client, total_bytes: int, **more: object) -> dict[str, Any]:
    body = {"file_name": "lab.dci", "total_bytes": total_bytes, **more}
    found: dict[str, Any] = api.post("/images/uploads", json=body).raise_for_status().json()
    return found


def put(api: httpx.Client, upload: dict[str, Any], offset: int, part: bytes) -> httpx.Response:
    path = f"/images/uploads/{upload['upload_id']}/content"
    return api.put(path, params={"offset": offset}, content=part, headers=BYTES)


def ended(api: httpx.Client, upload: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + LIMIT_S
    while (found := api.get(f"/images/uploads/{upload['upload_id']}").json())["state"] not in (
        "done",
        "failed",
    ):
        assert time.monotonic() < deadline
    return dict(found)


def written(made: MadeImage, path: Path) -> bytes:
    return made.write(path).read_bytes()


def leftovers(own: Path) -> list[str]:
    return sorted(path.name for path in own.iterdir() if "upload" in path.name)


def test_an_image_arrives_in_parts_and_is_in_the_library(
    api: httpx.Client, own: Path, tmp_path: Path
) -> None:
    made = make_image("drzur", seed=11, name="exam")
    data = written(made, tmp_path / "exam.dci")
    upload = start(api, len(data))
    half = len(data) // 2
    assert put(api, upload, 0, data[:half]).json()["received_bytes"] == half
    assert put(api, upload, 0, data[:half]).json()["received_bytes"] == half  # sent again after a lost answer
    assert put(api, upload, half + 1, data[half + 1 :]).status_code == 409
    assert api.get(f"/images/{made.manifest.image_id.hex()}").status_code == 404
    put(api, upload, half, data[half:]).raise_for_status()
    found = ended(api, upload)
    assert (found["state"], found["image_id"]) == ("done", made.manifest.image_id.hex())
    image = api.get(f"/images/{found['image_id']}").raise_for_status().json()
    assert (image["name"], image["number"], image["state"]) == ("exam", 1, "available")
    assert image["added_by"]
    assert Path(image["location"]).read_bytes() == data
    assert Path(image["location"]).parent == own
    entry = api.get("/audit").json()["items"][0]
    assert (entry["action"], entry["detail"]) == ("image.import", {"name": "exam", "file": "lab.dci"})
    again = start(api, len(data))
    put(api, again, 0, data)
    assert "already" in ended(api, again)["problem"]
    assert leftovers(own) == []
    assert (own / ".lab.dci.partial").exists()  # an unfinished capture


def test_a_damaged_image_is_refused_and_leaves_nothing(api: httpx.Client, own: Path, tmp_path: Path) -> None:
    made = make_image("rrr", seed=12, name="bad")
    data = bytearray(written(made, tmp_path / "bad.dci"))
    data[made.stored_offset(0)] ^= 1
    upload = start(api, len(data))
    put(api, upload, 0, bytes(data)).raise_for_status()
    found = ended(api, upload)
    assert found["state"] == "failed"
    assert "block" in found["problem"]
    assert str(own) not in found["problem"]
    assert leftovers(own) == []
    assert api.get(f"/images/{made.manifest.image_id.hex()}").status_code == 404


def test_a_raw_disk_becomes_an_image(api: httpx.Client, own: Path) -> None:
    upload = start(api, 1 << 20, file_name="tiny.raw", name="tiny")
    put(api, upload, 0, bytes(1 << 19)).raise_for_status()
    put(api, upload, 1 << 19, os.urandom(1 << 19)).raise_for_status()
    found = ended(api, upload)
    assert found["state"] == "done", found
    assert api.get(f"/images/{found['image_id']}").json()["name"] == "tiny"
    assert leftovers(own) == []


def test_limits_and_removal(
    served: Served, api: httpx.Client, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = [start(api, 100) for _ in range(image_uploads.UPLOADS_MAX)]
    refused = api.post("/images/uploads", json={"file_name": "x", "total_bytes": 1})
    assert refused.status_code == 409
    assert put(api, uploads[0], 0, bytes(101)).status_code == 409
    assert put(api, uploads[0], 0, bytes(image_uploads.PART_BYTES_MAX + 1)).status_code == 413
    for upload in uploads:
        api.delete(f"/images/uploads/{upload['upload_id']}").raise_for_status()
    assert leftovers(own) == []
    assert api.post("/images/uploads", json={"file_name": "x", "total_bytes": 1 << 45}).status_code == 409
    assert api.post("/images/uploads", json={"file_name": "x", "total_bytes": 0}).status_code == 422
    with served.client(Role.VIEW) as viewer:
        assert viewer.post("/images/uploads", json={"file_name": "x", "total_bytes": 1}).status_code == 403
        assert viewer.get(f"/images/{served.image.manifest.image_id.hex()}/file").status_code == 403


def command(served: Served, *arguments: str, code: int = 0) -> dict[str, Any]:
    environment = {"DISKCAST_SERVER": served.url, "DISKCAST_TOKEN": served.secrets[Role.OPERATE]}
    result = subprocess.run(
        diskcast(*arguments, "--json"), check=False, env={**os.environ, **environment}, capture_output=True,
        text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert result.returncode == code, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_the_commands_import_and_download_the_same_bytes(served: Served, tmp_path: Path) -> None:
    made = make_image("rdrzu" * 40, seed=13, name="office")
    data = written(made, tmp_path / "office.dci")
    assert len(data) > image_uploads.PART_BYTES_MAX
    image = command(served, "images", "import", str(tmp_path / "office.dci"))
    assert (image["name"], image["number"]) == ("office", 1)
    copy = tmp_path / "copy.dci"
    partial = tmp_path / f".copy.dci.{image['image_id'][:12]}.partial"
    partial.write_bytes(data[:100_000])  # of a download that broke
    command(served, "images", "download", "office@1", "-o", str(copy))
    assert copy.read_bytes() == data
    assert not partial.exists()
    partial.write_bytes(bytes(100_000))
    command(served, "images", "download", "office", "-o", str(tmp_path / "copy.dci"), code=23)
    assert not partial.exists()
