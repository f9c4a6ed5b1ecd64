"""CSV files of machines: all of a file is imported or nothing, and every line's problem is reported."""

from __future__ import annotations

import pytest

from protocol.errors import ConfigurationError
from sender.store.database.errors import ConflictError
from sender.store.machines.csv_import import IMPORT_LINES_MAX, read_rows
from sender.store.machines.identity import identity_key, normal_mac
from sender.store.repositories.audit import AuditNote
from sender.store.store import Store
from tests.store.samples import machine, report, room


@pytest.mark.parametrize(
    "text",
    [
        "name,mac,serial,asset_tag,position\npc-01,aa:bb:cc:00:00:02,S1,T1,row 1\n",
        "\ufeffName;MAC address;Serial number;Asset tag;Seat\r\npc-01;AA-BB-CC-00-00-02;S1;T1;row 1\r\n",
        'Hostname\tHW Address\tService Tag\tInventory no.\tLocation\tPrice\npc-01\taabbcc000002\tS1\tT1\t"row 1"\t9\n',
        "\n\nposition,asset_tag,serial,mac,name\n\nrow 1,T1,S1,aabb.cc00.0002,pc-01\n,,,,\n",
    ],
)
def test_files_of_common_spreadsheets_are_read(text: str) -> None:
    rows, problems = read_rows(text)
    assert problems == []
    [row] = rows
    assert (row.name, row.macs, row.serial, row.asset_tag, row.position) == (
        "pc-01", ("aa:bb:cc:00:00:02",), "S1", "T1", "row 1",
    )  # fmt: skip


def test_each_wrong_line_is_reported_with_its_number_and_nothing_is_changed(store: Store) -> None:
    store.rooms.add(room())
    result = store.machines.import_csv(
        "lab",
        "name,mac,serial\n"
        "pc-01,aa:bb:cc:00:00:02,\n"
        "pc-02,aa:bb:cc:00:00:2,\n"
        "pc-03,AA-BB-CC-00-00-02,\n"
        "pc-01,,\n"
        ",,\n"
        "pc-04,01:00:5e:00:00:01,\n"
        "pc-05,00:00:00:00:00:00,\n"
        ',,"  "\n'
        "pc-06,,S,extra\n"
        f"{'x' * 300},,\n",
    )
    assert (result.added, result.changed, result.unchanged) == (0, 0, 0)
    texts = {problem.line: problem.text for problem in result.problems}
    assert texts.keys() == {3, 4, 5, 7, 8, 10, 11}
    assert "isn't a hardware address: write it as" in texts[3]
    assert texts[4] == "hardware address aa:bb:cc:00:00:02 is in line 2 too: remove one of the lines"
    assert texts[5] == "name pc-01 is in line 2 too: remove one of the lines"
    assert "multicast" in texts[7]
    assert "4 cells under 3 column names" in texts[10]
    assert store.machines.list() == ([], None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file is empty"),
        ("foo,bar\n1,2\n", "no column identifies machines"),
        ("name,host\n1,2\n", "two columns stand for name"),
        ('name,mac\n"pc-01,aa\n', "isn't CSV"),
        ("name\n" + "".join(f"pc-{n}\n" for n in range(IMPORT_LINES_MAX + 1)), "more than 10000 machines"),
        ("name\n" + "x" * (9 << 20), "larger than 8 MiB"),
        ("name,mac\n" + "pc,zz\n" * 500, "the first 100 problems"),
    ],
)
def test_files_without_a_list_of_machines_are_refused_with_the_reason(text: str, problem: str) -> None:
    _, problems = read_rows(text)
    assert problem in problems[-1].text
    assert len(problems) <= 101


def test_an_import_matches_existing_machines(store: Store) -> None:
    store.rooms.add(room())
    store.rooms.add(room("attic"))
    live = report(store, macs=["aa:bb:cc:00:00:02"], serial="S-1", name="localhost", inventory={"ram": "8"})
    by_name = store.machines.add(machine("pc-02", room_id="lab", note="keep"))
    elsewhere = store.machines.add(machine("old", room_id="attic", asset_tag="T-3"))
    text = (
        "name,mac,serial,asset_tag\n"
        "pc-01,aa:bb:cc:00:00:02 aa:bb:cc:00:00:04,,\npc-02,,S-2,\npc-03,,,T-3\npc-04,,,\n"
    )
    result = store.machines.import_csv("lab", text, audit=AuditNote("anna"))
    assert (result.added, result.changed, result.unchanged, result.problems) == (1, 3, 0, ())
    again = store.machines.import_csv("lab", text)
    assert (again.added, again.changed, again.unchanged) == (0, 0, 4)
    found = {item.name: item for item in store.machines.of_room("lab")}
    assert found["pc-01"].machine_id == live.machine_id
    assert found["pc-01"].macs == ("aa:bb:cc:00:00:02", "aa:bb:cc:00:00:04")
    assert (found["pc-01"].serial, found["pc-01"].inventory) == ("S-1", {"ram": "8"})
    assert (found["pc-02"].machine_id, found["pc-02"].note) == (by_name.machine_id, "keep")
    assert found["pc-03"].machine_id == elsewhere.machine_id
    assert store.audit.list()[0][0].action == "room.import"
    twice = store.machines.import_csv(
        "lab", "name,mac,asset_tag\nx,aa:bb:cc:00:00:02,\ny,aa:bb:cc:00:00:04,\n"
    )
    assert "this is the machine of line 2 again" in twice.problems[0].text
    with pytest.raises(ConflictError, match="no room 'cellar'"):
        store.machines.import_csv("cellar", text)


def test_the_file_of_a_whole_school_is_imported_at_once(store: Store) -> None:
    store.rooms.add(room())
    lines = "".join(f"pc-{n},02:00:00:00:{n >> 8:02x}:{n & 255:02x},S-{n}\n" for n in range(1500))
    assert store.machines.import_csv("lab", "name,mac,serial\n" + lines).added == 1500
    assert len(store.machines.of_room("lab")) == 1500
    assert store.machines.find(["02:00:00:00:05:db"], "", "").name == "pc-1499"


@pytest.mark.parametrize(
    "text", ["aa:bb:cc:dd:ee", "aa:bb-cc:dd:ee:ff:00", "gg:bb:cc:dd:ee:ff", "ff:ff:ff:ff:ff:ff", ""]
)
def test_invalid_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        normal_mac(text)


@pytest.mark.parametrize(
    "text", ["", " ", "None", "NOT SPECIFIED", "000000", "........", "XXXXXXX", "Default string"]
)
def test_placeholders_identify_no_machine(text: str) -> None:
    assert identity_key(text) == ""
