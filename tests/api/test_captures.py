"""Captures over the API: the real agent's upload against the real daemon, and everybody else refused."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from protocol.constants import HASH_BYTES
from protocol.control.capture_messages import (
    BATCH_TYPE,
    CAPTURE_ASSIGNMENT,
    CAPTURE_START,
    BlockRows,
    CaptureAssignment,
    CaptureStart,
    SpanBatch,
)
from protocol.errors import CaptureFailedError, SourceError, SourceUncleanError
from protocol.image.manifest import BlockKind
from protocol.packing.image_start import ImageStart
from protocol.packing.source import Source
from protocol.program.peer_trust import PeerTrust
from receiver.capture.capture_disk import (
    CapturedImage,
    CapturePhase,
    CaptureProgress,
    CaptureStopped,
    DiskCapture,
)
from receiver.capture.upload_client import UploadClient
from receiver.reception.network.http_client import HttpPeer
from sender.imaging.pack import PackOptions, pack_image
from sender.store.records.access import Role
from tests.api.served import Served
from tests.api.test_refusals import check_problem
from tests.api.test_rooms_and_casts import check_in
from tests.support.network.lab import LIMIT_S

BLOCK_BYTES = 1 << 16


def disk_of(path: Path, seed: int, block_count: int = 200) -> Path:
    """Return a disk with random, compressible, zero and short last blocks, and a hole."""
    pick = random.Random(seed)
    with path.open("wb") as file:
        for index in range(block_count):
            kind = pick.random()
            if kind < 0.4:
                file.write(pick.randbytes(BLOCK_BYTES))
            elif kind < 0.7:
                file.write((b"%08d" % index) * (BLOCK_BYTES // 8))
            elif kind < 0.85:
                file.write(bytes(BLOCK_BYTES))
            else:
                file.seek(BLOCK_BYTES, os.SEEK_CUR)
        file.write(pick.randbytes(1536))
    return path


class Machine:
    """A machine with its secret, and its agent's upload."""

    def __init__(self, served: Served, name: str) -> None:
        number = zlib.crc32(name.encode()) & 0xFFFF
        self.name = name
        self._check_in = check_in(name, f"52:54:00:ee:{number >> 8:02x}:{number & 0xFF:02x}")
        with served.client(Role.ENROL) as agent:
            answer = agent.post("/check-in", json=self._check_in).json()
        self.machine_id: str = answer["machine_id"]
        self.served = served
        self.client = served.client(None, headers={"Authorization": f"Bearer {answer['machine_secret']}"})

    def assignment(self) -> CaptureAssignment:
        answer = self.client.post("/check-in", json=self._check_in).json()
        return CAPTURE_ASSIGNMENT.decode_untrusted("capture", answer["capture"])

    def boot_capture(self, disk: Path, assignment: CaptureAssignment, on_progress: Any = None) -> DiskCapture:
        peer = HttpPeer(
            self.served.url,
            PeerTrust.of_options((), None),
            server_kind="a daemon",
            example="",
            loopback_http=True,
        )
        return DiskCapture(
            UploadClient(peer, assignment), assignment, str(disk), on_progress or (lambda _progress: None)
        )


@pytest.fixture
def machine(guarded: Served, request: pytest.FixtureRequest) -> Iterator[Machine]:
    one = Machine(guarded, f"m{zlib.crc32(request.node.name.encode()):08x}")
    with one.client:
        yield one


def plan(operator: httpx.Client, machine: Machine, name: str, **more: Any) -> dict[str, Any]:
    body = {"name": name, "block_bytes": BLOCK_BYTES, **more}
    response = operator.post(f"/machines/{machine.machine_id}/capture", json=body)
    assert response.status_code == 201, response.text
    planned: dict[str, Any] = response.json()
    return planned


def packed(disk: Path, name: str, **more: Any) -> bytes:
    """Return the image that a local pack makes of the disk."""
    output = disk.with_suffix(".dci")
    pack_image(disk, output, PackOptions(name=name, block_bytes=BLOCK_BYTES, **more))
    return output.read_bytes()


@pytest.mark.parametrize("every_byte", [False, True])
def test_a_capture_is_the_image_that_pack_makes(
    guarded: Served, operator: httpx.Client, machine: Machine, tmp_path: Path, every_byte: bool
) -> None:
    disk = disk_of(tmp_path / "disk", 1)
    before = disk.read_bytes()
    name = f"made-{every_byte}"
    planned = plan(operator, machine, name, every_byte=every_byte)
    assert planned["state"] == "planned"
    seen: list[CaptureProgress] = []
    made: CapturedImage = machine.boot_capture(disk, machine.assignment(), seen.append).run()
    capture = operator.get(f"/captures/{planned['capture_id']}").json()
    assert (capture["state"], capture["image_id"]) == ("complete", made.image_id.hex())
    assert Path(capture["location"]).read_bytes() == packed(disk, name, every_byte=every_byte)
    assert disk.read_bytes() == before
    assert {each.phase for each in seen} == {CapturePhase.UPLOADING, CapturePhase.PROVING}
    image = operator.get(f"/images/{made.image_id.hex()}").json()
    assert (image["name"], image["state"]) == (name, "available")
    origin = image["origin"]
    assert (origin["kind"], origin["source"], origin["detail"]) == ("captured", machine.name, str(disk))
    [found] = operator.get("/captures", params={"image_id": made.image_id.hex()}).json()["items"]
    assert (found["capture_id"], found["disk"]) == (planned["capture_id"], str(disk))
    actions = [(entry["actor"], entry["action"]) for entry in operator.get("/audit").json()["items"]]
    assert (f"machine {machine.name}", "capture.complete") in actions
    assert not list(guarded.images.glob(".*.partial"))
    assert machine.client.post("/check-in", json=machine._check_in).json()["capture"] is None


def test_a_machine_is_shown_as_capturing(operator: httpx.Client, machine: Machine, tmp_path: Path) -> None:
    """An operator who sees it as offline goes there and switches it off and on, in the middle of its capture."""
    room = operator.post("/rooms", json={"name": "Captured", "room_id": "captured"})
    assert room.status_code == 201, room.text
    moved = operator.patch(f"/machines/{machine.machine_id}", json={"room_id": "captured"})
    assert moved.status_code == 200, moved.text
    disk = disk_of(tmp_path / "disk", 21)
    plan(operator, machine, "shown")
    seen: dict[CapturePhase, dict[str, Any]] = {}

    def now() -> dict[str, Any]:
        [found] = operator.get("/rooms/captured/live").json()["machines"]
        shown: dict[str, Any] = found
        return shown

    def look(progress: CaptureProgress) -> None:
        if progress.phase not in seen:
            seen[progress.phase] = now()

    assert now()["state"] == "idle"
    machine.boot_capture(disk, machine.assignment(), look).run()
    assert {shown["state"] for shown in seen.values()} == {"capturing"}
    assert all(shown["online"] for shown in seen.values())
    assert seen[CapturePhase.UPLOADING]["progress"] <= 0.5 <= seen[CapturePhase.PROVING]["progress"] <= 1
    assert now()["state"] == "idle"


def test_a_second_capture_uploads_only_new_blocks(
    operator: httpx.Client, machine: Machine, tmp_path: Path
) -> None:
    """A reference machine gets an update every week: its whole disk must not cross the network again."""
    disk = disk_of(tmp_path / "disk", 2, block_count=1000)
    plan(operator, machine, "weekly")
    first = machine.boot_capture(disk, machine.assignment()).run()
    with disk.open("r+b") as file:
        for block in range(0, 1000, 100):  # 1 % of the blocks
            file.seek(block * BLOCK_BYTES)
            file.write(os.urandom(BLOCK_BYTES))
    planned = plan(operator, machine, "weekly")
    assert planned["plan"]["base_image_id"] == first.image_id.hex()
    second = machine.boot_capture(disk, machine.assignment()).run()
    capture = operator.get(f"/captures/{planned['capture_id']}").json()
    assert second.sent_bytes <= 0.03 * first.sent_bytes
    assert capture["uploaded_bytes"] == second.sent_bytes
    assert capture["kept_bytes"] + capture["uploaded_bytes"] >= first.sent_bytes
    assert Path(capture["location"]).read_bytes() == packed(disk, "weekly")


def test_a_disk_that_changes_during_the_capture_is_refused(
    operator: httpx.Client, machine: Machine, tmp_path: Path
) -> None:
    """An image that is neither the old nor the new state of a disk would boot, and fail a week later."""
    disk = disk_of(tmp_path / "disk", 3)
    planned = plan(operator, machine, "changing")

    def change(progress: CaptureProgress) -> None:
        if progress.phase is CapturePhase.UPLOADING and progress.done_bytes == 0:
            status = disk.stat()
            with disk.open("r+b") as file:
                file.seek(7 * BLOCK_BYTES + 512)
                file.write(os.urandom(512))
            os.utime(disk, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a device, which has no such time

    capture = machine.boot_capture(disk, machine.assignment(), change)
    # The first batch has the whole disk; the change comes after it was read.
    with pytest.raises((CaptureFailedError, SourceError), match=r"changed|written to"):
        capture.run()
    failed = operator.get(f"/captures/{planned['capture_id']}").json()
    assert failed["state"] == "failed"
    assert "offset 458752" in failed["error"]
    assert not Path(failed["location"]).exists()
    assert not list(Path(failed["location"]).parent.glob(".*.partial"))


def start_message(disk: Path, name: str, uploader: bytes) -> dict[str, object]:
    with Source(disk) as source:
        start = ImageStart.of(source, name, BLOCK_BYTES, every_byte=False)
    return CAPTURE_START.encode(CaptureStart(uploader, str(disk), "", "", start.manifest_start))


def test_only_the_agent_of_the_capture_may_upload(
    guarded: Served, operator: httpx.Client, machine: Machine, tmp_path: Path
) -> None:
    disk = disk_of(tmp_path / "disk", 4, block_count=4)
    path = f"/captures/{plan(operator, machine, 'guarded')['capture_id']}/upload"
    first, second = machine.assignment(), machine.assignment()
    message = start_message(disk, "guarded", b"1" * 16)
    with guarded.client(None) as anybody:

        def post(secret: str, body: object = message, step: str = "") -> httpx.Response:
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            return anybody.post(path + step, json=body, headers=headers)

        check_problem(post(""), 401)
        check_problem(post("dcc_" + "a" * 43), 403)
        check_problem(post(first.secret), 403)  # replaced by the second check-in
        check_problem(post(guarded.secrets[Role.OPERATE]), 403)
        check_problem(machine.client.post(path, json=message), 401)
        assert post(second.secret).json() == {"next_block": 0, "proven_block": 0}
        other = start_message(disk, "guarded", b"2" * 16)
        check_problem(post(second.secret, other), 409)
        check_problem(post(second.secret, start_message(disk, "another", b"1" * 16)), 422)
        batch = {"Authorization": f"Bearer {second.secret}", "Content-Type": BATCH_TYPE}
        check_problem(anybody.post(f"{path}/spans", content=b"x" * 39, headers=batch), 422)
        check_problem(anybody.post(f"{path}/spans", content=b"\0" * 40, headers=batch), 409)  # uploader 0
        check_problem(
            anybody.post(f"{path}/spans", content=b"\0" * 40, headers=batch | {"Content-Type": "text/csv"}),
            415,
        )
        check_problem(anybody.post(f"{path}/spans", content=b"\0" * (20 << 20), headers=batch), 413)
        end = {"uploader": (b"1" * 16).hex(), "source_sha256": ""}
        check_problem(post(second.secret, end, "/commit"), 409)  # nothing is proven
        assert machine.assignment().secret != second.secret
    operator.post(path.replace("upload", "cancel"))


def test_a_batch_that_overtakes_another_waits_for_it(
    guarded: Served, operator: httpx.Client, machine: Machine, tmp_path: Path
) -> None:
    """Batches are on the way on several connections: a lost packet on one mustn't end the capture."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4 * BLOCK_BYTES))
    path = f"/captures/{plan(operator, machine, 'overtaken')['capture_id']}/upload"
    secret = machine.assignment().secret
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": BATCH_TYPE}

    def batch(sequence: int) -> bytes:
        rows = BlockRows(
            sequence,
            np.array([BlockKind.ZERO], np.uint8),
            np.zeros(1, np.uint32),
            bytes(HASH_BYTES),
            bytes(HASH_BYTES),
        )
        return SpanBatch(b"1" * 16, sequence, rows, memoryview(b"")).to_bytes()

    with guarded.client(None) as agent, ThreadPoolExecutor(1) as second:
        message = start_message(disk, "overtaken", b"1" * 16)
        agent.post(path, json=message, headers={"Authorization": f"Bearer {secret}"}).raise_for_status()

        def post(sequence: int) -> httpx.Response:
            return agent.post(f"{path}/spans", content=batch(sequence), headers=headers)

        check_problem(post(2), 409)  # too far ahead
        early = second.submit(post, 1)
        with pytest.raises(TimeoutError):
            early.result(0.2)
        assert post(0).json() == {"wanted": ""}
        assert early.result(LIMIT_S).json() == {"wanted": ""}
        for sequence in (0, 1):  # their answers were lost
            assert post(sequence).json() == {"wanted": ""}
        assert post(2).json() == {"wanted": ""}
        check_problem(post(0), 409)
    operator.post(path.replace("upload", "cancel"))


def test_a_cancelled_capture_leaves_nothing(operator: httpx.Client, machine: Machine, tmp_path: Path) -> None:
    disk = disk_of(tmp_path / "disk", 5)
    planned = plan(operator, machine, "cancelled")
    check_problem(operator.post(f"/machines/{machine.machine_id}/capture", json={"name": "again"}), 409)

    def cancel(progress: CaptureProgress) -> None:
        if progress.phase is CapturePhase.PROVING:
            operator.post(f"/captures/{planned['capture_id']}/cancel")

    with pytest.raises(CaptureFailedError, match="cancelled"):
        machine.boot_capture(disk, machine.assignment(), cancel).run()
    ended = operator.get(f"/captures/{planned['capture_id']}").json()
    assert ended["state"] == "cancelled"
    assert not list(Path(ended["location"]).parent.glob(".*cancelled*"))
    check_problem(operator.post(f"/captures/{planned['capture_id']}/cancel"), 409)


def test_the_operator_sees_why_a_machine_cannot_capture(
    operator: httpx.Client, machine: Machine, tmp_path: Path
) -> None:
    planned = plan(operator, machine, "refused", source="/dev/no-such-disk")
    with pytest.raises(SourceError, match="no-such-disk"):
        machine.boot_capture(tmp_path / "disk", machine.assignment()).run()
    failed = operator.get(f"/captures/{planned['capture_id']}").json()
    assert failed["state"] == "failed"
    assert "name a disk with --source" in failed["error"]


def test_an_unclean_filesystem_is_refused_with_the_fix(
    operator: httpx.Client, machine: Machine, tmp_path: Path
) -> None:
    """Each machine that gets such an image would have to repair it at its first boot."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(16 << 20))
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    subprocess.run(["debugfs", "-w", "-R", "ssv state 0", disk], check=True, capture_output=True)
    planned = plan(operator, machine, "unclean")
    with pytest.raises(SourceUncleanError, match="wasn't unmounted cleanly"):
        machine.boot_capture(disk, machine.assignment()).run()
    failed = operator.get(f"/captures/{planned['capture_id']}").json()
    assert failed["state"] == "failed"
    assert "run its fsck" in failed["error"]
    # For evidence its state is the point.
    evidence = plan(operator, machine, "evidence", every_byte=True)
    machine.boot_capture(disk, machine.assignment()).run()
    assert operator.get(f"/captures/{evidence['capture_id']}").json()["state"] == "complete"


def test_an_agent_that_starts_again_continues(
    operator: httpx.Client, machine: Machine, tmp_path: Path
) -> None:
    """A technician trips over the cable: neither the disk is read again from its start, nor is the image another."""
    disk = disk_of(tmp_path / "disk", 6, block_count=1000)  # several batches
    planned = plan(operator, machine, "resumed")
    reached = threading.Event()

    def stop(progress: CaptureProgress) -> None:
        if progress.done_bytes > 0:
            reached.set()
            running.stop()

    running = machine.boot_capture(disk, machine.assignment(), stop)
    with pytest.raises(CaptureStopped):
        running.run()
    assert reached.is_set()
    again = machine.boot_capture(disk, machine.assignment()).run()
    capture = operator.get(f"/captures/{planned['capture_id']}").json()
    assert capture["state"] == "complete"
    assert again.sent_bytes < capture["uploaded_bytes"], "the first run's blocks weren't sent again"
    assert Path(capture["location"]).read_bytes() == packed(disk, "resumed")
