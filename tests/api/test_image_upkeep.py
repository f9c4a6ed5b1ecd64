"""Contents, differences and pruning of images over the API and the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sender.imaging.contents.image_contents import CONTENTS_VERSION
from sender.imaging.pack import PackOptions, pack_image
from sender.store.records.access import Role
from tests.api.served import Served, serve
from tests.support.disks.disk_images import make_image
from tests.support.network.lab import LIMIT_S, diskcast

OLD = make_image("rrzu", seed=1, name="lab")
NEW = make_image("rdzu", seed=1, name="lab")
IDS = [made.manifest.image_id.hex() for made in (OLD, NEW)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    own = folder / "state" / "images"
    own.mkdir(parents=True)
    with serve(folder, library__folders=(str(own), str(folder / "images"))) as started:
        yield started


@pytest.fixture
def own(served: Served) -> Path:
    return served.folder / "state" / "images"


@pytest.fixture
def api(served: Served, own: Path) -> Iterator[httpx.Client]:
    """Return a client; the daemon's own folder has two versions of ``lab``, the other folder an image."""
    with served.client() as client:
        for number, made in enumerate((OLD, NEW), 1):
            if not (own / f"lab-{number}.dci").exists():
                made.write(own / f"lab-{number}.dci")
            until(
                client,
                made.manifest.image_id.hex(),
                lambda image, number=number: (
                    (image.get("number"), image.get("state")) == (number, "available")
                ),
            )
        yield client


def until(client: httpx.Client, image_id: str, condition) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + LIMIT_S
    while not condition(client.get(f"/images/{image_id}").json()):
        assert time.monotonic() < deadline
        client.post("/images/scan").raise_for_status()


def contents(client: httpx.Client, image_id: str) -> dict[str, object]:
    deadline = time.monotonic() + LIMIT_S
    while (found := client.get(f"/images/{image_id}/contents").raise_for_status().json())[
        "state"
    ] == "reading":
        assert time.monotonic() < deadline
    return found


def test_contents_are_read_once_and_kept_in_the_database(
    served: Served, api: httpx.Client, own: Path
) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 isn't installed")
    tree = served.folder / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/os-release").write_text('PRETTY_NAME="Debian 12"\n')
    disk = served.folder / "disk"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-L", "golden", "-d", tree, disk], check=True)
    packed = pack_image(disk, own / "debian.dci", PackOptions(name="debian", level=1))
    image_id = packed.image_id.hex()
    until(api, image_id, lambda image: image.get("state") == "available")
    found = contents(api, image_id)
    [partition] = found["contents"]["partitions"]  # type: ignore[index]
    assert (partition["filesystem"], partition["label"], partition["system"]) == (
        "ext4",
        "golden",
        "Debian 12",
    )
    stored = served.store(lambda store: store.image_entries.contents, image_id, CONTENTS_VERSION)
    assert stored == found["contents"]
    assert "Debian 12" in command("images", "show", "debian", environment=environment(served))


def environment(served: Served) -> dict[str, str]:
    return {"DISKCAST_SERVER": served.url, "DISKCAST_TOKEN": served.secrets[Role.OPERATE]}


def command(*arguments: str, environment: dict[str, str]) -> str:
    result = subprocess.run(
        diskcast(*arguments),
        check=False,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_damaged_image_has_no_contents_and_stops_nothing(api: httpx.Client, own: Path) -> None:
    bad = make_image("rr", seed=7, name="bad")
    path = bad.write(own / "bad.dci")
    data = bytearray(path.read_bytes())
    data[bad.stored_offset(0)] ^= 1
    path.write_bytes(data)
    until(api, bad.manifest.image_id.hex(), lambda image: image.get("state") == "available")
    assert contents(api, bad.manifest.image_id.hex())["state"] in ("ready", "unavailable")
    assert contents(api, IDS[0])["state"] == "ready"
    assert api.get(f"/images/{'0' * 64}/contents").status_code == 404


def test_versions_are_compared_by_api_and_command_with_the_same_result(
    served: Served, api: httpx.Client, own: Path
) -> None:
    found = api.get(f"/images/{IDS[1]}/diff", params={"older": IDS[0]}).raise_for_status().json()
    assert found["whole"]["changed_count"] == 1
    assert found["whole"]["sent_bytes"] == len(NEW.stored[1])
    for names, more in (
        (("lab@1", "lab@2"), environment(served)),
        ((str(own / "lab-1.dci"), str(own / "lab-2.dci")), {"DISKCAST_SERVER": "http://127.0.0.1:9"}),
    ):
        result = json.loads(command("images", "diff", *names, "--json", environment=more).splitlines()[-1])
        assert result["whole"] == found["whole"]
    assert api.get(f"/images/{IDS[1]}/diff", params={"older": "0" * 64}).status_code == 409


def test_nothing_is_deleted_that_the_preview_didnt_show(served: Served, api: httpx.Client, own: Path) -> None:
    preview = api.get("/images/prune", params={"keep_last": 1}).raise_for_status().json()
    assert [each["image_id"] for each in preview["deleted"]] == [IDS[0]]
    foreign = next(
        each for each in preview["kept"] if each["image_id"] == served.image.manifest.image_id.hex()
    )
    assert "foreign_folder" in foreign["reasons"]
    assert (own / "lab-1.dci").exists()
    newer = make_image("rrzu", seed=3, name="lab")
    newer.write(own / "lab-3.dci")
    until(api, newer.manifest.image_id.hex(), lambda image: image.get("number") == 3)
    body = {"keep_last": 1, "preview": preview["preview"]}
    refused = api.post("/images/prune", json=body)
    assert refused.status_code == 409
    assert (own / "lab-1.dci").exists()
    with served.client(Role.VIEW) as viewer:
        assert viewer.get("/images/prune").is_success
        assert viewer.post("/images/prune", json=body).status_code == 403
    preview = api.get("/images/prune", params={"keep_last": 2}).raise_for_status().json()
    body = {"keep_last": 2, "preview": preview["preview"]}
    deleted = api.post("/images/prune", json=body).raise_for_status().json()
    assert [each["image_id"] for each in deleted["deleted"]] == [IDS[0]]
    assert not [path for path in own.iterdir() if "lab-1" in path.name]
    assert (own / "lab-2.dci").exists()
    assert (served.images / "lab.dci").exists()
    entry = api.get("/audit").json()["items"][0]
    assert (entry["action"], entry["detail"]["name"]) == ("image.prune", "lab@1")
    until(api, IDS[0], lambda image: image.get("state") == "gone")
    assert api.get(f"/images/{IDS[0]}").json()["number"] == 1


def test_the_last_image_of_a_room_and_a_pinned_one_stay(served: Served, api: httpx.Client) -> None:
    everything = api.get("/images/prune", params={"keep_last": 1}).json()
    for each in everything["deleted"]:
        api.patch(f"/images/{each['image_id']}", json={"pinned": True}).raise_for_status()
    assert api.get("/images/prune", params={"keep_last": 1}).json()["deleted"] == []
    output = command("images", "prune", "--keep-last", "1", "--apply", environment=environment(served))
    assert "deleted 0 images" in output
