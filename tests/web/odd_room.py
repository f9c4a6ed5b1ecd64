"""A room of machines of which one fits an image, one is refused and one has warnings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from protocol.control.hardware_record import HARDWARE
from protocol.model.hardware import FirmwareKind
from tests.support.hardware import sample_disk, sample_hardware
from tests.support.programs.serving import Daemon

ODD_ROOM: Final = "annex"
_MIB: Final = 1 << 20
_MACHINES: Final = {
    "annex01": sample_hardware(),
    "annex02": sample_hardware(disks=(sample_disk(size_bytes=4 * _MIB),)),
    "annex03": sample_hardware(memory_bytes=256 * _MIB, firmware=FirmwareKind.BIOS, secure_boot=None),
}


@contextlib.contextmanager
def odd_room(daemon: Daemon) -> Iterator[None]:
    """Provide the room; its machines have checked in once."""
    daemon.ask("POST", "/rooms", {"name": "Annex", "room_id": ODD_ROOM})
    ids = []
    for number, (name, hardware) in enumerate(_MACHINES.items(), 1):
        answer = daemon.check_in(
            {
                "agent_id": f"{number:032}",
                "name": name,
                "version": "1.0",
                "interface": "eth0",
                "macs": [f"52:54:00:99:00:{number:02}"],
                "serial": "",
                "asset_tag": "",
                "inventory": {},
                "state": "idle",
                "cast_id": None,
                "last_result": None,
                "wait_s": 0,
                "hardware": HARDWARE.encode(hardware),
            }
        )
        ids.append(answer["machine_id"])
        daemon.ask("PATCH", f"/machines/{answer['machine_id']}", {"room_id": ODD_ROOM})
    yield
    for machine_id in ids:
        daemon.ask("DELETE", f"/machines/{machine_id}")
    daemon.ask("DELETE", f"/rooms/{ODD_ROOM}")
