"""Attacks on captures: a daemon that is taken over, machines that aren't the captured one, blocks that lie."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.control.capture_messages import BATCH_TYPE, CAPTURE_START, CaptureStart
from protocol.model.session_records import MachineIdentity
from protocol.packing.image_start import ImageStart
from protocol.packing.source import Source
from tests.attacks.test_enrolment import check_in_of
from tests.attacks.test_image_requests import TakenOver
from tests.support.network.lab import LIMIT_S, wait_until
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online

BLOCK_BYTES = 1 << 16
UPLOADER = b"u" * 16


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("captures")) as started:
        yield started


def plan(daemon: Daemon, machine_id: str, name: str) -> dict[str, Any]:
    return dict(
        daemon.ask("POST", f"/machines/{machine_id}/capture", {"name": name, "block_bytes": BLOCK_BYTES})
    )


def test_35_an_installed_agent_gives_its_disk_to_no_daemon(daemon: Daemon, tmp_path: Path) -> None:
    """Otherwise an attacker who takes the daemon over reads the disks of all machines, with everything on them."""
    (tmp_path / "pc41.disk").write_bytes(bytes(BLOCK_BYTES))
    with ServiceAgent(tmp_path, "pc41", [daemon]):
        [machine_id] = wait_online(daemon, ["pc41"]).values()
        capture = plan(daemon, machine_id, "stolen")
        path = f"/captures/{capture['capture_id']}"
        wait_until("the agent refuses", lambda: daemon.ask("GET", path)["state"] == "failed")
    assert "--allow-capture" in daemon.ask("GET", path)["error"]
    assert not list(daemon.images.iterdir())


def test_36_no_other_machine_and_no_forged_block_gets_into_an_image(daemon: Daemon, tmp_path: Path) -> None:
    """Otherwise a hostile machine puts its own system into the image that a whole site gets next week."""
    reference = TakenOver(daemon, "pc42", "02:00:00:00:00:42")
    hostile = TakenOver(daemon, "pc43", "02:00:00:00:00:43")
    disk = tmp_path / "disk"
    disk.write_bytes(b"\1" * BLOCK_BYTES)
    with Source(disk) as source:
        start = ImageStart.of(source, "golden", BLOCK_BYTES, every_byte=False).manifest_start
    message = CAPTURE_START.encode(CaptureStart(UPLOADER, "/dev/sda", "", "", start))
    capture = plan(daemon, reference.machine_id, "golden")
    path = f"/captures/{capture['capture_id']}/upload"
    report = check_in_of("pc42", MachineIdentity(("02:00:00:00:00:42",), "", ""))
    secret = reference.send("POST", "/check-in", report).json()["capture"]["secret"]
    assert hostile.send("POST", path, message).status_code == 401, "a machine's secret"
    assert hostile.send("POST", path, message, "dcc_" + "x" * 43).status_code == 403
    assert hostile.send("POST", path, message, daemon.secret("operate")).status_code == 403
    assert reference.send("POST", path, message, secret).status_code == 200
    again = dict(message) | {"uploader": (b"v" * 16).hex()}
    assert hostile.send("POST", path, again, secret).status_code == 409, "a second uploader"
    rows = struct.pack("<16sQQII", UPLOADER, 0, 0, 1, 0) + b"\1" + struct.pack("<I", BLOCK_BYTES) + b"h" * 32
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": BATCH_TYPE}
    post = daemon.api.post
    assert post(f"{path}/spans", content=rows, headers=headers, timeout=LIMIT_S).status_code == 200
    nothing = struct.pack("<16sQQII", UPLOADER, 1, 1, 0, 0)
    assert post(f"{path}/spans", content=nothing, headers=headers, timeout=LIMIT_S).status_code == 200
    # Payload follows its rows two batches later.
    forged = struct.pack("<16sQQII", UPLOADER, 2, 1, 0, BLOCK_BYTES) + b"\2" * BLOCK_BYTES
    assert post(f"{path}/spans", content=forged, headers=headers, timeout=LIMIT_S).status_code == 410
    failed = daemon.ask("GET", f"/captures/{capture['capture_id']}")
    assert failed["state"] == "failed"
    assert "without its hashes" in failed["error"]
    assert not list(daemon.images.iterdir())
