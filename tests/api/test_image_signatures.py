"""Signing an image of a daemon's library: the API's checks, and `diskcast images sign` from an operator's machine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from protocol.trust.statement import ImageStatement
from sender.store.records.access import Role
from tests.api.served import Served, serve
from tests.support.disks.disk_images import make_image
from tests.support.network.lab import LIMIT_S, Program, diskcast
from tests.support.signing import SIGNER, STRANGER, signed, signing_environment

MADE = make_image("rdz", seed=3, name="golden")
IMAGE_ID = MADE.manifest.image_id.hex()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served")) as started:
        yield started


@pytest.fixture
def api(served: Served) -> Iterator[httpx.Client]:
    """Return a client; the library has an unsigned image."""
    MADE.write(served.images / "golden.dci", signer=None)
    with served.client() as client:
        client.post("/images/scan").raise_for_status()
        assert client.get(f"/images/{IMAGE_ID}").is_success
        yield client


def body(version: int, key: object = SIGNER, **changes: str) -> dict[str, str]:
    both = signed(ImageStatement(MADE.manifest.image_id, "golden", version), key)  # type: ignore[arg-type]
    return {
        "statement": both.statement.decode(),
        "signature": both.signature,
        "public_key": key.public.text,  # type: ignore[attr-defined]
        **changes,
    }


def test_an_unsigned_image_is_signed_by_upload(api: httpx.Client) -> None:
    view = api.get(f"/images/{IMAGE_ID}/signature").json()
    assert (view["name"], view["statement"], view["public_key"]) == ("golden", "", "")
    image = api.post(f"/images/{IMAGE_ID}/sign", json=body(7)).raise_for_status().json()
    assert (image["version"], image["signer"], image["signed_name"]) == ("7", SIGNER.public.id_text, "golden")
    view = api.get(f"/images/{IMAGE_ID}/signature").json()
    assert view["statement"] == body(7)["statement"]
    entry = api.get("/audit").json()["items"][0]
    assert (entry["action"], entry["subject"]) == ("image.sign", f"image {IMAGE_ID}")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"public_key": STRANGER.public.text}, 422),
        ({"public_key": "RW" + "=" * 54}, 422),
        ({"statement": "x" * 1025}, 422),
        ({"signature": "untrusted comment: x"}, 422),
        ({"statement": "diskcast-image-v1\n"}, 422),
    ],
)
def test_an_invalid_signature_changes_nothing(api: httpx.Client, change: dict[str, str], status: int) -> None:
    before = api.get(f"/images/{IMAGE_ID}").json()
    response = api.post(f"/images/{IMAGE_ID}/sign", json=body(2**63, **change))
    assert response.status_code == status, response.text
    assert api.get(f"/images/{IMAGE_ID}").json() == before


def test_an_older_version_is_refused(api: httpx.Client) -> None:
    api.post(f"/images/{IMAGE_ID}/sign", json=body(202)).raise_for_status()
    response = api.post(f"/images/{IMAGE_ID}/sign", json=body(202))
    assert response.status_code == 409
    assert "higher --image-version" in response.text


def test_viewers_cant_sign(served: Served, api: httpx.Client) -> None:
    with served.client(Role.VIEW) as viewer:
        assert viewer.get(f"/images/{IMAGE_ID}/signature").is_success
        assert viewer.post(f"/images/{IMAGE_ID}/sign", json=body(2**62)).status_code == 403


def test_an_operator_signs_on_a_machine_of_their_own(
    served: Served, api: httpx.Client, tmp_path: Path
) -> None:
    """The daemon's state must have no key, and the daemon can't choose what is signed."""
    environment = {**signing_environment(), "DISKCAST_SERVER": served.url}
    environment["DISKCAST_TOKEN"] = served.secrets[Role.OPERATE]
    with Program(
        diskcast("images", "sign", "golden", "--tag", "uefi", "--json"), environment=environment
    ) as signing:
        assert signing.wait(LIMIT_S) == 0, signing.describe()
    image = api.get(f"/images/{IMAGE_ID}").json()
    assert image["signer"] == SIGNER.public.id_text
    assert int(image["version"]) > 202611010000
    exported = tmp_path / "golden.statement"
    with Program(
        diskcast("images", "sign", IMAGE_ID[:12], "--export", exported), environment=environment
    ) as export:
        assert export.wait(LIMIT_S) == 0, export.describe()
    assert f"image-id: {IMAGE_ID}" in exported.read_text()
    assert "tags: uefi" in exported.read_text()
    subprocess.run(
        diskcast("sign", exported), check=True, capture_output=True, env={**environment, "PATH": ""}
    )
    options = ("--import", str(exported), "--public-key", SIGNER.public.text)
    with Program(diskcast("images", "sign", IMAGE_ID[:12], *options), environment=environment) as importing:
        assert importing.wait(LIMIT_S) == 0, importing.describe()
    assert int(api.get(f"/images/{IMAGE_ID}").json()["version"]) == int(image["version"]) + 1
    secret = SIGNER.file_text().splitlines()[1].encode()
    for path in served.folder.rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path
            assert SIGNER.seed not in path.read_bytes(), path
