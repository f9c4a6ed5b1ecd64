"""Recorded hardware. If these fail, operators don't find the machines that differ, or see those of a removed one."""

from __future__ import annotations

import dataclasses

import pytest

from protocol.model.hardware import FirmwareKind
from sender.store.store import Store
from tests.store.samples import report, room
from tests.support.hardware import sample_card, sample_disk, sample_hardware

OLD = sample_hardware(
    firmware=FirmwareKind.BIOS,
    secure_boot=None,
    disks=(sample_disk(model="ST_3000", serial="Z1%", sector_bytes=4096),),
    cards=(sample_card(driver=""),),
)


@pytest.fixture
def machines(store: Store) -> Store:
    store.rooms.add(room("lab"))
    report(
        store,
        name="pc-01",
        macs=["52:54:00:00:00:01"],
        serial="SN-1",
        hardware=sample_hardware(),
        room_id="lab",
    )
    report(store, name="pc-02", macs=["52:54:00:00:00:02"], serial="SN-2", hardware=OLD)
    report(store, name="pc-03", macs=["52:54:00:00:00:03"], serial="SN-3")
    return store


def test_the_last_report_is_kept_with_its_time(machines: Store) -> None:
    ids = {machine.name: machine.machine_id for machine in machines.machines.list()[0]}
    found = machines.hardware.of_machines([*ids.values(), "m0"])
    assert {machine_id: one.hardware for machine_id, one in found.items()} == {
        ids["pc-01"]: sample_hardware(),
        ids["pc-02"]: OLD,
    }
    smaller = dataclasses.replace(OLD, disks=())
    report(machines, name="pc-02", macs=["52:54:00:00:00:02"], serial="SN-2", hardware=smaller)
    later = machines.hardware.of_machines([ids["pc-02"]])[ids["pc-02"]]
    assert later.hardware == smaller
    assert later.at > found[ids["pc-02"]].at


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("", ["pc-01", "pc-02", "pc-03"]),
        ("4KN", ["pc-02"]),
        ("no driver", ["pc-02"]),
        ("bios st_3000", ["pc-02"]),
        ("st-3000", []),
        ("z1%", ["pc-02"]),
        ("wd5000", ["pc-01"]),
        ("00:00:03", ["pc-03"]),
        ("sn-", ["pc-01", "pc-02", "pc-03"]),
        ("pc-0 uefi", ["pc-01"]),
        ("%", ["pc-02"]),
    ],
)
def test_machines_are_found_by_all_words(machines: Store, search: str, names: list[str]) -> None:
    assert [machine.name for machine in machines.machines.list(search=search)[0]] == names
    in_room = [machine.name for machine in machines.machines.list("lab", search)[0]]
    assert in_room == [name for name in names if name == "pc-01"]


def test_a_removed_machine_takes_its_hardware_along(machines: Store) -> None:
    [found] = machines.machines.list(search="4kn")[0]
    assert machines.machines.remove(found.machine_id)
    assert machines.hardware.of_machines([found.machine_id]) == {}


DONGLE = "00:e0:4c:00:00:99"
ON_USB = sample_hardware(cards=(sample_card(), sample_card(name="eth1", mac=DONGLE, on_usb=True)))


def test_a_dongle_identifies_no_machine(store: Store) -> None:
    """It is plugged into one laptop after the other, with or without a readable serial number."""
    own = "52:54:00:00:00:01"
    first = report(store, name="laptop-1", macs=[DONGLE, own], hardware=ON_USB)
    assert first.macs == (own,)
    second = report(store, name="laptop-2", macs=[DONGLE], serial="PF-2", hardware=ON_USB)
    assert second.machine_id != first.machine_id
    assert second.macs == ()
    assert report(store, name="laptop-2", macs=[own, DONGLE], hardware=ON_USB).machine_id == first.machine_id


def test_a_machine_with_nothing_else_is_known_by_its_dongle(store: Store) -> None:
    first = report(store, name="stick", macs=[DONGLE], hardware=ON_USB)
    assert report(store, name="stick", macs=[DONGLE], hardware=ON_USB).machine_id == first.machine_id
