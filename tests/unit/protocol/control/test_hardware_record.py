"""Hardware on the wire: if this fails, a daemon judges a machine by another one's facts, or not at all."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from protocol.constants import HARDWARE_DEVICES_MAX
from protocol.control.control_messages import parse_json_untrusted
from protocol.control.hardware_record import HARDWARE
from protocol.errors import ProtocolError
from protocol.model.hardware import (
    DiskHealth,
    FirmwareKind,
    Hardware,
    SmartVerdict,
    hardware_texts,
    search_text,
)
from tests.support.hardware import sample_card, sample_disk, sample_hardware

BARE = dataclasses.replace(
    sample_hardware(firmware=FirmwareKind.UNKNOWN, secure_boot=None, tpm_version="", memory_bytes=0),
    processor="",
    disks=(),
    cards=(sample_card(name="", mac="", driver="", speed_mbps=None),),
    controllers=(),
)


def through_json(hardware: Hardware) -> Any:
    return parse_json_untrusted(json.dumps(HARDWARE.encode(hardware)).encode())


@pytest.mark.parametrize("hardware", [sample_hardware(), BARE])
def test_hardware_arrives_as_it_was_sent(hardware: Hardware) -> None:
    assert HARDWARE.decode_untrusted("hardware", through_json(hardware)) == hardware


def test_too_many_disks_or_unknown_words_are_refused() -> None:
    document = through_json(sample_hardware())
    disk = document["disks"][0]
    refused = [
        {"disks": [disk] * (HARDWARE_DEVICES_MAX + 1)},
        {"disks": [disk | {"sector_bytes": 0}]},
        {
            "disks": [
                disk | {"health": {"verdict": "perfect", "used_percent": None, "reallocated_count": None}}
            ]
        },
        {"firmware": "coreboot"},
        {"memory_bytes": -1},
        {"processor": "x" * 200},
    ]
    for change in refused:
        with pytest.raises(ProtocolError):
            HARDWARE.decode_untrusted("hardware", document | change)


def test_the_largest_inventory_is_bounded() -> None:
    disk = sample_disk(**dict.fromkeys(("name", "model", "serial", "transport"), "ü" * 500))
    card = sample_card(modalias="ü" * 500, driver="ü" * 500)
    largest = sample_hardware(disks=(disk,) * HARDWARE_DEVICES_MAX, cards=(card,) * HARDWARE_DEVICES_MAX)
    document = through_json(largest)
    assert len(json.dumps(document, ensure_ascii=False).encode()) < 20 << 10
    HARDWARE.decode_untrusted("hardware", document)


def test_the_textual_inventory_is_that_of_the_hardware() -> None:
    assert hardware_texts(sample_hardware()) == {
        "firmware": "UEFI, Secure Boot",
        "processor": "Intel(R) Core(TM) i5-8500",
        "processors": "6",
        "memory": "8.0 GiB",
        "disks": "sda 500.0 GiB WDC WD5000",
    }
    assert hardware_texts(BARE) == {"processors": "6"}


def test_an_operator_finds_what_is_unusual() -> None:
    failing = DiskHealth(SmartVerdict.FAILING)
    words = search_text(
        sample_hardware(
            disks=(sample_disk(sector_bytes=4096, health=failing),), cards=(sample_card(driver=""),)
        )
    )
    assert all(
        word in words for word in ("4kn", "smart failing", "no driver", "8086:15fa", "wd-1", "uefi", "tpm 2")
    )
    assert "4kn" not in search_text(sample_hardware())
