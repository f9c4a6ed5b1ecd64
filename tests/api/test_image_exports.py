"""Exports over the API: disks that are streamed, and files that the daemon makes; qemu-img and zstd are the judges."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol.errors import ImageDamagedError, StorageError
from sender.daemon.exports import image_exports
from sender.store.records.access import Role
from tests.api.served import Served, serve
from tests.api.test_image_files import command
from tests.support.disks.disk_images import make_image
from tests.support.network.lab import LIMIT_S, run, wait_until

MADE = make_image("rdzu" * 6 + "dr", block_bytes=256 << 10, seed=3, name="lab")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    leftover = folder / "state" / "cache" / "exports"
    leftover.mkdir(parents=True)
    (leftover / ".0123456789abcdef.qcow2.partial").write_bytes(b"of a killed daemon")
    with serve(folder) as started:
        wait_until("leftovers are removed", lambda: not leftover.exists())
        MADE.write(started.images / "big.dci")
        damaged = bytearray(make_image("rrzr", seed=9, name="bad").write(folder / "bad.dci").read_bytes())
        damaged[make_image("rrzr", seed=9, name="bad").stored_offset(0)] ^= 1
        (started.images / "bad.dci").write_bytes(damaged)
        with started.client() as client:
            wait_until(
                "three images have their numbers",
                lambda: [image["number"] for image in client.get("/images").json()["items"]] == [1, 1, 1],
            )
        yield started


@pytest.fixture
def api(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def path_of(image_id: str = "") -> str:
    return f"/images/{image_id or MADE.manifest.image_id.hex()}"


def ended(api: httpx.Client, export: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + LIMIT_S
    while (found := api.get(f"/images/exports/{export['export_id']}").json())["state"] not in (
        "done",
        "failed",
    ):
        assert time.monotonic() < deadline
    return dict(found)


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx", "vdi", "vhd"])
def test_an_export_is_made_downloaded_and_removed(
    served: Served, api: httpx.Client, tmp_path: Path, kind: str
) -> None:
    created = api.post(f"{path_of()}/exports", json={"format": kind})
    assert created.status_code == 201
    found = ended(api, created.json())
    assert (found["state"], found["progress"], found["problem"]) == ("done", 1.0, ""), found
    assert found["file_name"] == f"lab@1.{kind}"
    again = api.post(f"{path_of()}/exports", json={"format": kind}).json()
    assert again["export_id"] == found["export_id"]
    here = f"/images/exports/{found['export_id']}/file"
    whole = api.get(here).raise_for_status()
    assert f"lab%401.{kind}" in whole.headers["content-disposition"]
    assert len(whole.content) == found["file_bytes"]
    part = api.get(here, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    raw, path = tmp_path / "raw", tmp_path / "export"
    raw.write_bytes(MADE.raw)
    path.write_bytes(whole.content)
    driver = {"vhd": "vpc"}.get(kind, kind)
    source = f"driver={driver},file.driver=file,file.filename={path}"
    if kind == "vhd":
        source += ",force_size_calc=current_size"
    compared = run(
        "qemu-img", "compare", "--image-opts", f"driver=raw,file.driver=file,file.filename={raw}", source
    )
    assert "Images are identical." in compared
    actions = [
        (entry["action"], entry["detail"]["format"]) for entry in api.get("/audit").json()["items"][:2]
    ]
    assert actions == [("image.download", kind), ("image.export", kind)]
    api.delete(f"/images/exports/{found['export_id']}").raise_for_status()
    assert api.get(here).status_code == 404
    assert list((served.folder / "state/cache/exports").iterdir()) == []


def test_the_command_exports_downloads_and_checks(served: Served, api: httpx.Client, tmp_path: Path) -> None:
    """A qcow2 file that was damaged on its way boots, and fails a week later."""
    copy, raw = tmp_path / "big.qcow2", tmp_path / "raw"
    export = ("images", "export", "lab@1", "--format", "qcow2", "-o", str(copy))
    image = command(served, *export)
    [made] = api.get("/images/exports").json()["items"]
    assert image["image_id"] == made["image_id"]
    data = copy.read_bytes()
    assert (made["file_bytes"], made["file_sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    raw.write_bytes(MADE.raw)
    assert "Images are identical." in run(
        "qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), str(copy)
    )
    partial = tmp_path / f".big.qcow2.{made['export_id']}.partial"
    partial.write_bytes(data[:70_000])  # of a download that broke
    copy.unlink()
    command(served, *export)
    assert (copy.read_bytes(), partial.exists()) == (data, False)
    partial.write_bytes(data[:1000] + b"?" + data[1001:70_000])
    copy.unlink()
    assert "download it again" in command(served, *export, code=22)["error"]
    assert not copy.exists()
    assert not partial.exists()
    api.delete(f"/images/exports/{made['export_id']}").raise_for_status()


def test_a_raw_disk_is_streamed_from_any_place(api: httpx.Client, served: Served) -> None:
    whole = api.get(f"{path_of()}/file", params={"format": "raw"}).raise_for_status()
    assert whole.content == MADE.raw
    for header, part in (
        ("bytes=0-0", MADE.raw[:1]),
        ("bytes=300000-800000", MADE.raw[300000:800001]),
        ("bytes=-7", MADE.raw[-7:]),
        ("bytes=6000000-", MADE.raw[6000000:]),
    ):
        answer = api.get(f"{path_of()}/file", params={"format": "raw"}, headers={"Range": header})
        assert (answer.status_code, answer.content) == (206, part), header
    beyond = api.get(
        f"{path_of()}/file", params={"format": "raw"}, headers={"Range": f"bytes={len(MADE.raw)}-"}
    )
    assert beyond.status_code == 416
    other = {"Range": "bytes=0-0", "If-Range": '"another"'}
    assert api.get(f"{path_of()}/file", params={"format": "raw"}, headers=other).content == MADE.raw
    # A response is over for the client a moment before it is for the server.
    wait_until("no disk is sent", lambda: served.application.state.disk_stream_count == 0)


def test_a_compressed_disk_is_streamed_and_zstd_reads_it(api: httpx.Client, tmp_path: Path) -> None:
    with api.stream("GET", f"{path_of()}/file", params={"format": "raw.zst"}) as response:
        assert response.status_code == 200
        start = next(response.iter_bytes(1 << 20))
        tag = response.headers["etag"]
        total = int(response.headers["content-length"])
    headers = {"Range": f"bytes={len(start)}-", "If-Range": tag}
    rest = api.get(f"{path_of()}/file", params={"format": "raw.zst"}, headers=headers)
    assert rest.status_code == 206
    assert len(start) + len(rest.content) == total
    packed = tmp_path / "disk.zst"
    packed.write_bytes(start + rest.content)
    assert subprocess.run(["zstd", "-dcq", packed], check=True, capture_output=True).stdout == MADE.raw
    assert total < len(MADE.raw)


def test_a_damaged_image_is_never_a_complete_download(api: httpx.Client) -> None:
    bad = make_image("rrzr", seed=9, name="bad").manifest.image_id.hex()
    with pytest.raises(httpx.RemoteProtocolError):
        api.get(f"{path_of(bad)}/file", params={"format": "raw"})
    found = ended(api, api.post(f"{path_of(bad)}/exports", json={"format": "qcow2"}).json())
    assert (found["state"], found["exit_code"]) == ("failed", ImageDamagedError.exit_code)
    assert api.get(f"/images/exports/{found['export_id']}/file").status_code == 409


def test_exports_are_bounded(served: Served, api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.services.exports, "_limit_bytes", 1 << 20)
    found = ended(api, api.post(f"{path_of()}/exports", json={"format": "vdi"}).json())
    assert (found["state"], found["exit_code"]) == ("failed", StorageError.exit_code)
    assert "library.exports_size" in found["problem"]
    monkeypatch.undo()
    monkeypatch.setattr(image_exports, "WAITING_MAX", 0)
    assert api.post(f"{path_of()}/exports", json={"format": "vdi"}).status_code == 409
    monkeypatch.undo()
    first = ended(api, api.post(f"{path_of()}/exports", json={"format": "qcow2"}).json())
    monkeypatch.setattr(served.services.exports, "_limit_bytes", first["file_bytes"] + (1 << 20))
    second = ended(api, api.post(f"{path_of()}/exports", json={"format": "vdi"}).json())
    assert second["state"] == "done", second
    assert api.get(f"/images/exports/{first['export_id']}").status_code == 404  # made room
    api.delete(f"/images/exports/{second['export_id']}").raise_for_status()


def test_only_operators_export(served: Served) -> None:
    with served.client(Role.VIEW) as viewer:
        assert viewer.post(f"{path_of()}/exports", json={"format": "qcow2"}).status_code == 403
        assert viewer.get(f"{path_of()}/file", params={"format": "raw"}).status_code == 403
        assert viewer.get("/images/exports").status_code == 200
    with served.client() as client:
        assert client.post(f"{path_of()}/exports", json={"format": "clonezilla"}).status_code == 422
        assert client.post(f"{path_of('0' * 64)}/exports", json={"format": "qcow2"}).status_code == 404
