"""The preflight of a room of real agents with real disks: whom a cast excludes, and whom it doesn't keep waiting.

If it fails, a cast overwrites disks that can't start afterwards, or a whole room waits for one wrong disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import PreflightRefusedError
from protocol.trust.statement import ImageStatement
from sender.imaging.pack import PackOptions, pack_image
from sender.imaging.signature_page import write_signature
from tests.support.disks.devices import loop_device
from tests.support.network.lab import run, wait_until
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online
from tests.support.signing import SIGNER, signed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices")

MIB = 1 << 20
DISK_BYTES = 24 * MIB
DISKS = {
    "good": (32 * MIB, 512),
    "large": (64 * MIB, 512),
    "small": (16 * MIB, 512),
    "4kn": (32 * MIB, 4096),
}


def pack_disk(folder: Path) -> Path:
    """Return an image of a disk with a GPT and one partition of random bytes."""
    disk = folder / "source.raw"
    disk.write_bytes(os.urandom(DISK_BYTES))
    with disk.open("r+b") as file:
        file.write(bytes(MIB))
    run(
        "sfdisk",
        "--quiet",
        "--no-reread",
        "--wipe",
        "never",
        disk,
        text="label: gpt\nstart=1MiB, size=20MiB\n",
    )
    image = folder / "lab.dci"
    packed = pack_image(disk, image, PackOptions(name="lab", level=1))
    write_signature(image, signed(ImageStatement(packed.image_id, "lab", 1)), SIGNER.public)
    return image


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def grades(row: dict[str, Any]) -> dict[str, str]:
    return {
        check["subject"]: check["grade"] for check in row["checks"] if check["grade"] in ("warn", "refuse")
    }


def test_disks_that_do_not_fit_are_excluded_untouched_and_nobody_waits_for_them(tmp_path: Path) -> None:
    image = pack_disk(tmp_path)
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(Daemon(tmp_path / "d"))
        daemon.add_image(image)
        targets: dict[str, Path] = {}
        for name, (size_bytes, sector_bytes) in DISKS.items():
            backing = tmp_path / f"{name}.raw"
            backing.write_bytes(os.urandom(size_bytes))
            device = stack.enter_context(loop_device(backing, "--sector-size", str(sector_bytes)))
            targets[name] = device
            stack.enter_context(ServiceAgent(tmp_path / "agents", name, [daemon], target=device))
        ids = wait_online(daemon, DISKS)
        before = {name: digest(tmp_path / f"{name}.raw") for name in DISKS}
        body = {"image": "lab", "machine_ids": list(ids.values())}

        def read() -> dict[str, Any] | None:
            found = daemon.ask("POST", "/casts/preflight", body)
            return found if found["image_known"] else None

        found = wait_until("the image's contents are known", read)
        matrix = {row["name"]: grades(row) for row in found["machines"]}
        assert matrix == {"good": {}, "large": {}, "small": {"disk": "refuse"}, "4kn": {"sectors": "refuse"}}
        assert (found["refused_count"], found["warned_count"]) == (2, 0)

        # It would wait an hour for machines that it expects.
        cast_id = daemon.create_cast("lab", machine_ids=list(ids.values()), max_wait_s=3600.0)
        ended = daemon.wait_phase(cast_id, "failed", "done")
        machines = daemon.machines_of(cast_id)
        assert {name: row["state"] for name, row in machines.items()} == {
            "good": "complete",
            "large": "complete",
            "small": "failed",
            "4kn": "failed",
        }, ended
        for name, word in (("small", "is smaller than the image"), ("4kn", "logical sectors of 4096 bytes")):
            row = machines[name]
            assert row["exit_code"] == PreflightRefusedError.exit_code
            assert word in row["error"]
            assert row["joined_at"] is None
            assert digest(tmp_path / f"{name}.raw") == before[name], f"{name} was written to"
        source = (tmp_path / "source.raw").read_bytes()
        # The partition; the table is fitted to the larger disk.
        assert targets["good"].read_bytes()[MIB : 20 * MIB] == source[MIB : 20 * MIB]
