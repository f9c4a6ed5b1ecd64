"""Templates, variables and previews of machine patches."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from sender.patches.patch_bundle import build_bundle
from sender.store.records.access import Role
from tests.api.served import Served
from tests.api.test_refusals import check_problem
from tests.support.disks.disk_images import make_image
from tests.support.patches import make_patch, signed_set

TEMPLATE = """
hostname = "{{ name }}"
timezone = "Europe/Vienna"
secret_variables = ["join_password"]

[[users]]
name = "teacher"
password_hash = "$6$saltsalt$hashhashhash"

[network]
mode = "static"
addresses = ["{{ ip }}/24"]

[[files]]
path = "/etc/join"
content = "password={{ join_password }} at {{ ip }}"
"""
CSV = {"Content-Type": "text/csv"}


@pytest.fixture
def room(operator: httpx.Client) -> Any:
    operator.post("/rooms", json={"name": "Patched", "room_id": "patched"}).raise_for_status()
    machines = [
        operator.post(
            "/machines",
            json={
                "name": f"pc-{n}",
                "macs": [f"52:54:00:99:00:0{n}"],
                "serial": serial,
                "room_id": "patched",
            },
        ).json()
        for n, serial in ((1, "SN-1"), (2, "Default string"))
    ]
    yield machines
    for machine in machines:
        operator.delete(f"/machines/{machine['machine_id']}")
    operator.delete("/rooms/patched")


def test_a_template_is_checked_when_it_is_saved(operator: httpx.Client, room: Any) -> None:
    place = "/rooms/patched/template"
    check_problem(operator.get(place), 404)
    assert operator.put(place, json={"text": TEMPLATE}).json()["text"] == TEMPLATE
    assert operator.get(place).json()["changed_by"] == "test-operate"
    wrong = check_problem(operator.put(place, json={"text": 'hostnme = "x"'}), 422)
    assert "did you mean hostname?" in wrong["detail"]
    check_problem(operator.put(place, json={"text": "x = ["}), 422)
    into_ext4 = 'hostname = "x"\n[filesystem]\nkind = "ext4"\npartition = 1\n'
    assert "patch-set upload" in check_problem(operator.put(place, json={"text": into_ext4}), 422)["detail"]
    check_problem(operator.put(place, json={"text": "#" * (129 << 10)}), 422)
    check_problem(operator.put("/rooms/nowhere/template", json={"text": TEMPLATE}), 404)
    assert operator.get(place).json()["text"] == TEMPLATE, "a refused template changes nothing"
    assert operator.delete(place).status_code == 204
    check_problem(operator.delete(place), 404)


def test_readers_get_no_secrets(guarded: Served, operator: httpx.Client, room: Any) -> None:
    operator.put("/rooms/patched/template", json={"text": TEMPLATE}).raise_for_status()
    with guarded.client(Role.VIEW) as viewer:
        check_problem(viewer.get("/rooms/patched/template"), 403)
        check_problem(viewer.get(f"/machines/{room[0]['machine_id']}/variables"), 403)


def test_variables_are_set_one_machine_at_a_time(operator: httpx.Client, room: Any) -> None:
    place = f"/machines/{room[0]['machine_id']}/variables"
    assert operator.get(place).json()["variables"] == {}
    saved = operator.put(place, json={"variables": {"ip": "10.1.2.1", "gone": ""}}).json()
    assert (saved["variables"], saved["changed_by"]) == ({"ip": "10.1.2.1"}, "test-operate")
    for bad in ({"serial": "x"}, {"Ip": "x"}, {"ip": "a\nb"}, {"ip": "x" * 5000}, {"ip": 5}):
        check_problem(operator.put(place, json={"variables": bad}), 422)
    many = {f"v{n}": "x" for n in range(65)}
    check_problem(operator.put(place, json={"variables": many}), 422)
    check_problem(operator.put("/machines/nobody/variables", json={"variables": {}}), 404)
    assert operator.get(place).json() == saved


def test_variables_are_imported_completely_or_not_at_all(operator: httpx.Client, room: Any) -> None:
    place = "/rooms/patched/variables/import"
    first, second = (f"/machines/{machine['machine_id']}/variables" for machine in room)
    operator.put(first, json={"variables": {"printer": "lab-2"}}).raise_for_status()
    text = "name;mac;serial;ip\npc-1;;SN-1;10.1.2.1\nrenamed;52-54-00-99-00-02;;10.1.2.2\n"
    assert operator.post(place, content=text, headers=CSV).json() == {
        "changed": 2, "unchanged": 0, "problems": []
    }  # fmt: skip
    assert operator.get(first).json()["variables"] == {"printer": "lab-2", "ip": "10.1.2.1"}
    assert operator.get(second).json()["variables"] == {"ip": "10.1.2.2"}, "its address names it"
    assert operator.post(place, content=text, headers=CSV).json()["unchanged"] == 2
    for bad, reason in (
        ("name,ip\npc-1,10.1.2.9\npc-7,10.1.2.7\n", "no machine 'pc-7'"),
        ("name,mac,ip\npc-1,52:54:00:99:00:01,x\nPC-1,,y\n", "is in line 2 too"),
        ("name,mac,serial,ip\nx,52:54:00:99:00:02,SN-1,y\n", "several machines"),
        ("ip\n10.1.2.3\n", "no column is called name"),
        ("name,ip\n", "no machines"),
        ('name,ip\npc-1,"x\n', "isn't CSV"),
    ):
        result = operator.post(place, content=bad, headers=CSV).json()
        assert (result["changed"], reason in result["problems"][0]["text"]) == (0, True), result
    assert operator.get(first).json()["variables"] == {"printer": "lab-2", "ip": "10.1.2.1"}
    cleared = "name,printer\npc-1,\n"
    assert operator.post(place, content=cleared, headers=CSV).json()["changed"] == 1
    assert operator.get(first).json()["variables"] == {"ip": "10.1.2.1"}


def test_a_preview_shows_one_machine_without_its_secrets(operator: httpx.Client, room: Any) -> None:
    operator.put("/rooms/patched/template", json={"text": TEMPLATE}).raise_for_status()
    ids = [machine["machine_id"] for machine in room]
    variables = {"ip": "10.1.2.1", "join_password": "swordfish"}
    operator.put(f"/machines/{ids[0]}/variables", json={"variables": variables}).raise_for_status()
    place = "/rooms/patched/template/preview"
    shown = operator.post(place, json={"machine_id": ids[0]})
    body = shown.json()
    assert (body["hostname"], body["patch_machine_id"], body["problem"]) == ("pc-1", "SN-1", "")
    assert "10.1.2.1/24" in body["files"]["network-config"]
    assert "password=(secret) at 10.1.2.1" in body["files"]["user-data"]
    assert "swordfish" not in shown.text
    assert "hashhash" not in shown.text
    other = operator.post(place, json={"machine_id": ids[1]}).json()
    assert "machine pc-2: there is no variable 'join_password'" in other["problem"]
    assert other["patch_machine_id"] == "52:54:00:99:00:02", "a placeholder identifies no machine"
    draft = operator.post(place, json={"machine_id": ids[1], "text": 'hostname = "x{{ name }}"'}).json()
    assert draft["hostname"] == "xpc-2"
    check_problem(operator.post(place, json={"machine_id": ids[1], "text": "hostname = 1"}), 422)
    check_problem(operator.post(place, json={"machine_id": "nobody"}), 422)


def test_a_cast_whose_image_takes_no_patches_is_refused_when_it_is_planned(
    guarded: Served, operator: httpx.Client, room: Any
) -> None:
    operator.put("/rooms/patched/template", json={"text": TEMPLATE}).raise_for_status()
    plan = {"image": guarded.image.manifest.image_id.hex(), "room_id": "patched"}
    refused = check_problem(operator.post("/casts", json=plan), 409)
    assert "room patched has a template" in str(refused["detail"])
    assert "--plain" in str(refused["detail"])
    planned = operator.post("/casts", json=plan | {"plain": True})
    assert planned.status_code == 201, planned.text
    assert planned.json()["plan"]["plain"] is True
    operator.post(f"/casts/{planned.json()['cast_id']}/cancel").raise_for_status()


def test_only_whole_sets_are_kept(operator: httpx.Client, room: Any) -> None:
    """Otherwise a machine without its patch is found when the cast starts, or a forged one by its agent."""
    image = make_image("drzu")
    patches = [make_patch(image.manifest, {0: "d"}, machine_id=name, seed=n) for n, name in enumerate("ab")]
    set_file = signed_set(patches).to_bytes()
    place, kind = "/rooms/patched/patch-sets", {"Content-Type": "application/octet-stream"}
    whole = build_bundle(set_file, [patch.data for patch in patches])
    foreign = make_patch(image.manifest, {0: "d"}, machine_id="a", seed=7)
    for content, reason in (
        (b"", "it is empty"),
        (whole[:-1], "truncated"),
        (build_bundle(set_file, [patches[0].data]), "the patch for 'b' is missing"),
        (build_bundle(set_file, [foreign.data, patches[1].data]), "another patch, or none, for 'a'"),
        (build_bundle(b"nonsense", []), "three parts"),
    ):
        assert reason in str(check_problem(operator.put(place, content=content, headers=kind), 422)["detail"])
    assert operator.get(place).json() == []
    saved = operator.put(place, content=whole, headers=kind).json()
    image_id = image.manifest.image_id.hex()
    assert (saved["image_id"], saved["machine_count"]) == (image_id, 2)
    assert operator.put(place, content=whole, headers=kind).status_code == 200
    assert [one["name"] for one in operator.get(place).json()] == [saved["name"]]
    assert operator.delete(f"{place}/{image_id}").status_code == 204
    check_problem(operator.delete(f"{place}/{image_id}"), 404)
