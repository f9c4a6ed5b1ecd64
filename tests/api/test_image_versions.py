"""Versions of one name over the API: references, schedules that follow the newest, notes and pins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest

from sender.daemon.scheduler import plan_due
from sender.store.records.access import Role
from tests.api.served import Served, serve
from tests.support.disks.disk_images import make_image
from tests.support.network.lab import LIMIT_S

VERSIONS = [make_image("drzu", seed=seed, name="lab") for seed in (1, 2)]
IDS = [made.manifest.image_id.hex() for made in VERSIONS]
PLAN = {"room_id": "lab-1", "start": "manual"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served")) as started:
        yield started


@pytest.fixture
def api(served: Served) -> Iterator[httpx.Client]:
    """Return a client; the library has two versions of the name ``lab``, the second one newer."""
    with served.client() as client:
        for number, made in enumerate(VERSIONS, 1):
            path = served.images / f"lab-{number}.dci"
            if not path.exists():
                made.write(path)
            numbered(client, IDS[number - 1], number)
        if client.get("/rooms/lab-1").status_code == 404:
            client.post("/rooms", json={"room_id": "lab-1", "name": "Lab 1"}).raise_for_status()
            client.post(
                "/machines", json={"name": "pc01", "room_id": "lab-1", "serial": "SN1"}
            ).raise_for_status()
        yield client


def numbered(client: httpx.Client, image_id: str, number: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while client.get(f"/images/{image_id}").json().get("number") != number:
        assert time.monotonic() < deadline
        client.post("/images/scan").raise_for_status()


@pytest.mark.parametrize(
    ("reference", "index"), [("lab", 1), ("lab@latest", 1), ("lab@2", 1), ("lab@1", 0), (IDS[0][:10], 0)]
)
def test_a_cast_records_exactly_one_image(api: httpx.Client, reference: str, index: int) -> None:
    cast = api.post("/casts", json={**PLAN, "image": reference, "start_at": "2050-01-01T00:00:00Z"})
    plan = cast.raise_for_status().json()["plan"]
    assert (plan["image_id"], plan["latest_of"]) == (IDS[index], "")
    api.post(f"/casts/{cast.json()['cast_id']}/cancel")


def test_a_version_that_never_was_is_refused(api: httpx.Client) -> None:
    refused = api.post("/casts", json={**PLAN, "image": "lab@3"})
    assert refused.status_code == 422
    assert "lab@3" in refused.text


@pytest.mark.parametrize(
    ("reference", "followed"), [("lab@latest", "lab"), ("lab", ""), ("lab@1", ""), (IDS[1], "")]
)
def test_only_latest_makes_a_schedule_follow(api: httpx.Client, reference: str, followed: str) -> None:
    body = {"name": "nightly", "cron": "0 3 * * *", "plan": {**PLAN, "image": reference}, "enabled": False}
    schedule = api.post("/schedules", json=body).raise_for_status().json()
    assert schedule["plan"]["latest_of"] == followed
    api.delete(f"/schedules/{schedule['schedule_id']}").raise_for_status()


def test_a_due_schedule_casts_the_newest_version_at_the_time(served: Served, api: httpx.Client) -> None:
    schedules = {}
    for reference in ("lab@latest", "lab@2"):
        body = {"name": reference, "cron": "0 3 * * *", "plan": {**PLAN, "image": reference}}
        schedules[reference] = api.post("/schedules", json=body).raise_for_status().json()["schedule_id"]
    newest = make_image("drzu", seed=3, name="lab")
    newest.write(served.images / "lab-3.dci")
    numbered(api, newest.manifest.image_id.hex(), 3)
    found = {}
    for reference, schedule_id in schedules.items():
        due = served.store(lambda store: store.schedules.change, schedule_id, next_at=datetime.now(UTC))
        services = served.services
        served.run(plan_due(services.store, services.library, services.commands, due))
        after = api.get(f"/schedules/{schedule_id}").json()
        assert after["last_cast_id"], (after, due)
        cast_id = after["last_cast_id"]
        plan = api.get(f"/casts/{cast_id}").json()["cast"]["plan"]
        found[reference] = (plan["image_id"], plan["latest_of"])
        api.delete(f"/schedules/{schedule_id}").raise_for_status()
    assert found == {"lab@latest": (newest.manifest.image_id.hex(), ""), "lab@2": (IDS[1], "")}
    (served.images / "lab-3.dci").unlink()
    while api.get(f"/images/{newest.manifest.image_id.hex()}").json()["state"] != "gone":
        api.post("/images/scan").raise_for_status()


def test_notes_and_pins_are_kept_and_audited(api: httpx.Client) -> None:
    body = {"note": "Office 2027,\nfor June", "pinned": True}
    image = api.patch(f"/images/{IDS[0]}", json=body).raise_for_status().json()
    assert (image["note"], image["pinned"], image["latest"]) == ("Office 2027,\nfor June", True, False)
    assert image["origin"] == {"kind": "packed", "source": "", "detail": ""}
    assert api.get(f"/images/{IDS[1]}").json()["latest"]
    entry = api.get("/audit").json()["items"][0]
    assert (entry["action"], entry["detail"]["name"]) == ("image.change", "lab@1")


@pytest.mark.parametrize("note", ["x" * 1001, "bell\a", "\u202egpj"])
def test_a_note_that_could_mislead_is_refused(api: httpx.Client, note: str) -> None:
    assert api.patch(f"/images/{IDS[0]}", json={"note": note}).status_code == 422


def test_viewers_read_notes_only(served: Served, api: httpx.Client) -> None:
    with served.client(Role.VIEW) as viewer:
        assert viewer.get(f"/images/{IDS[0]}").is_success
        assert viewer.patch(f"/images/{IDS[0]}", json={"note": "x"}).status_code == 403
