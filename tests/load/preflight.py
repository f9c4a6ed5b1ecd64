"""``make bench-preflight``: the time of one preflight, with the store, the images' drivers and the judgement.

The machines are of twenty models, as in a school; the image has the drivers of a distribution's kernel.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from protocol.preflight.requirements import DriverAliases, ImageRequirements
from protocol.preflight.sectors import SectorNeeds
from sender.config.config_file import load_config
from sender.daemon.preflight_desk import PreflightDesk
from sender.library.library import Library
from sender.store.machines.machine_report import MachineReport
from sender.store.open_store import open_store
from sender.store.records.images import Image, ImageState
from sender.store.records.machines import Room
from tests.support.hardware import sample_card, sample_disk, sample_hardware

MODEL_COUNT = 20
ALIAS_COUNT = 8000
IMAGE = Image("ab" * 32, "lab", "/images/lab.dci", "folder", ImageState.AVAILABLE, 100 << 30, 1, 1, 0, "", None,
              datetime.now(UTC))  # fmt: skip


def _report(number: int) -> MachineReport:
    model = number % MODEL_COUNT
    mac = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
    alias = f"pci:v00008086d{model * 400:08X}sv00001028sd00000A36bc02sc00i00"
    hardware = sample_hardware(
        disks=(sample_disk(size_bytes=(50 + 20 * model) << 30, serial=f"S{number}"),),
        cards=(sample_card(mac=mac, modalias=alias),),
    )
    return MachineReport(
        f"pc{number:04}", [mac], f"SN-{number}", "", "10.0.0.1", "1", {}, "", "lab", hardware
    )


async def _measure(machine_count: int, folder: Path) -> None:
    config = load_config(None, {"server.state_directory": folder})
    store = open_store(config, upkeep=False)
    try:
        store.rooms.add(Room("lab", "Lab", "", "", "", datetime.now(UTC)))
        for start in range(0, machine_count, 100):
            store.machines.record(
                [_report(number) for number in range(start, min(start + 100, machine_count))]
            )
        desk = PreflightDesk(store, Library(config.library, store))
        for attempt in ("first", "second"):
            drivers = DriverAliases(
                f"pci:v00008086d{number:08X}sv*sd*bc*sc*i*" for number in range(ALIAS_COUNT)
            )
            desk.keep(
                IMAGE.image_id, ImageRequirements(SectorNeeds(IMAGE.raw_bytes), drivers_known=True), drivers
            )
            started = time.perf_counter()
            found = await desk.matrix(IMAGE, "lab", ())
            seconds = time.perf_counter() - started
            print(
                f"{attempt} preflight of {len(found.machines)} machines: {seconds * 1e3:.0f} ms, "
                f"{found.refused_count} refused, {found.warned_count} with warnings"
            )
    finally:
        store.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.load.preflight", description=__doc__)
    parser.add_argument("--machines", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(arguments.machines, Path(folder)))


if __name__ == "__main__":
    main()
