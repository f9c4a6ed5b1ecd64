"""A room with a template: real agents on loop devices, each with its own name, by a real daemon.

Lost if these fail: clones with one name, or one wrong line in a table that keeps a whole room waiting.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from protocol.constants import MIB
from protocol.disk.disk_layout import Partition, layout_of
from protocol.patch.effective_manifest import machine_digest
from sender.imaging.image_file import ImageFile
from tests.support.disks.devices import loop_device
from tests.support.network import lab
from tests.support.network.lab import LIMIT_S
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online, wait_until
from tests.support.signing import signing_environment

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root"),
]

MACHINES = 8
"""Thirty take minutes on two busy cores, nearly all of it for the agents."""
NAMES = [f"pc-{number:02}" for number in range(1, MACHINES + 1)]
LATE = "pc-late"
"""A machine whose variables are missing at first."""

TEMPLATE = """
hostname = "{{ name }}"
domain = "lab.example"
secret_variables = ["join_password"]

[network]
mode = "static"
mac = "{{ nic }}"
addresses = ["{{ ip }}/24"]

[[files]]
path = "/etc/join.secret"
content = "{{ join_password }}"
secret = true
"""


def _diskcast(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, **signing_environment()},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def _csv(names: list[str]) -> str:
    lines = ["name,machine_id,serial,nic,ip,join_password"]
    lines += [
        f"{name},SN-{name},SN-{name},52:54:00:00:00:{number:02x},10.1.2.{number},Geheim!{number}"
        for number, name in enumerate(names, 1)
    ]
    return "\n".join(lines) + "\n"


def _golden_image(folder: Path, policy: str = "daemon") -> Path:
    """Pack a disk with a real ext4 and a seed partition."""
    disk, tree, filesystem = folder / "golden.raw", folder / "tree", folder / "ext4"
    tree.mkdir()
    for number in range(20):
        (tree / f"file-{number}").write_bytes(os.urandom(50_000))
    for path, size in ((disk, 20 * MIB), (filesystem, 12 * MIB)):
        with path.open("wb") as file:
            file.truncate(size)
    lab.run("mke2fs", "-q", "-t", "ext4", "-d", tree, filesystem)
    lab.run("sgdisk", "--new=1:1M:+12M", disk)
    lab.run("dd", f"if={filesystem}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse")
    image = folder / "lab.dci"
    _diskcast("sender", "pack", disk, "-o", image, "--seed-partition", "--patches", policy)
    return image


def _partitions(image: Path) -> tuple[Partition, Partition, int]:
    """Return the system's and the seed's partition, and the size of the disk."""
    with ImageFile.open(image) as opened:
        layout = layout_of(opened.manifest.metadata)
        assert layout is not None
        return layout.partitions[0], layout.partitions[-1], opened.manifest.raw_bytes


@contextlib.contextmanager
def _part(disk: Path, part: Partition) -> Any:
    place = ("--offset", str(part.start_bytes), "--sizelimit", str(part.size_bytes))
    with loop_device(disk, "--read-only", *place) as device:
        yield device


def _import(daemon: Daemon, path: str, text: str) -> dict[str, Any]:
    response = daemon.api.post(path, content=text.encode(), headers={"Content-Type": "text/csv"})
    return dict(response.raise_for_status().json())


def test_each_machine_of_a_room_gets_its_own_disk(tmp_path: Path) -> None:
    image = _golden_image(tmp_path)
    system, seed, disk_bytes = _partitions(image)
    folder = tmp_path / "patches"
    (tmp_path / "lab.toml").write_text(TEMPLATE)
    everyone = [*NAMES, LATE]
    (tmp_path / "all.csv").write_text(_csv(everyone))
    built = ("--template", tmp_path / "lab.toml", "--machines", tmp_path / "all.csv", "-o", folder)
    _diskcast("sender", "patches", "build", image, *built)
    index = json.loads((folder / "index.json").read_text())
    patch_ids = {row["name"]: row["patch_id"] for row in index["machines"]}
    disks = {name: tmp_path / f"{name}.raw" for name in everyone}
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(Daemon(tmp_path / "daemon"))
        image_id = daemon.add_image(image)["image_id"]
        daemon.ask("POST", "/rooms", {"name": "lab", "room_id": "lab"})
        identities = "name,serial\n" + "".join(f"{name},SN-{name}\n" for name in everyone)
        assert _import(daemon, "/rooms/lab/import", identities)["added"] == len(everyone)
        assert _import(daemon, "/rooms/lab/variables/import", _csv(NAMES))["changed"] == MACHINES
        daemon.ask("PUT", "/rooms/lab/template", {"text": TEMPLATE})
        for name, disk in disks.items():
            with disk.open("wb") as file:
                file.truncate(disk_bytes)
            device = stack.enter_context(loop_device(disk))
            stack.enter_context(ServiceAgent(tmp_path, name, [daemon], target=device))
        wait_online(daemon, everyone, 10 * LIMIT_S)

        first = daemon.create_cast(image_id, room_id="lab")
        ended = wait_until(
            "the first cast has ended",
            lambda: daemon.cast(first) if daemon.cast(first)["ended_at"] else {},
            10 * LIMIT_S,
            describe=daemon.describe,
        )
        rows = daemon.machines_of(first)
        assert {name: row["state"] for name, row in rows.items()} == (
            dict.fromkeys(NAMES, "complete") | {LATE: "failed"}
        ), [ended["reason"], *(row["error"] for row in rows.values())]
        assert "machine pc-late: there is no variable" in rows[LATE]["error"]
        assert rows[LATE]["exit_code"] is None, "it wasn't assigned at all"
        assert not any(disks[LATE].read_bytes()), "nothing was written"

        assert _import(daemon, "/rooms/lab/variables/import", _csv(everyone))["changed"] == 1
        second = daemon.create_cast(image_id, room_id="lab")
        daemon.wait_phase(second, "done", timeout_s=10 * LIMIT_S)
        third = daemon.create_cast(image_id, room_id="lab")
        again = daemon.wait_phase(third, "done", timeout_s=10 * LIMIT_S)
        for name, row in daemon.machines_of(third).items():
            assert (row["state"], row["patch_id"]) == ("complete", patch_ids[name])
            assert row["bytes_kept"] == row["bytes_verified"], f"{name} fetched something again"
        lines = {line["machine_name"]: line for line in daemon.history(cast_id=third, limit="100")}
        for name in everyone:
            digest = machine_digest(bytes.fromhex(image_id), bytes.fromhex(patch_ids[name])).hex()
            assert lines[name]["machine_digest"] == digest
        assert again["bytes_sent"] < MIB, "no image data: the manifest and control messages alone"
        shown = "".join(json.dumps(daemon.ask("GET", path, limit="200")) for path in ("/history", "/audit"))
        assert "Geheim!" not in shown + daemon.program.stderr_text()
    hostnames = set()
    for name, disk in disks.items():
        _diskcast("receiver", "compare", image, "--target", disk, "--patch", folder / f"{name}.dcp")
        with _part(disk, system) as device:
            lab.run("e2fsck", "-fn", device)
        with _part(disk, seed) as device:
            meta = json.loads(lab.run("mtype", "-i", device, "::meta-data"))
        hostnames.add(meta["local-hostname"])
        assert meta["local-hostname"] == name
    assert len(hostnames) == len(everyone)


def test_a_room_gets_the_signed_patches_that_an_operator_uploaded(tmp_path: Path) -> None:
    """The daemon never had the template, and its word alone counts for nothing."""
    image, folder, name = _golden_image(tmp_path, "signed"), tmp_path / "patches", NAMES[0]
    (tmp_path / "lab.toml").write_text(TEMPLATE)
    (tmp_path / "lab.csv").write_text(_csv([name]))
    built = ("--template", tmp_path / "lab.toml", "--machines", tmp_path / "lab.csv", "-o", folder)
    _diskcast("sender", "patches", "build", image, *built)
    _diskcast("sender", "patches", "sign", folder)
    with Daemon(tmp_path / "daemon") as daemon, ServiceAgent(tmp_path, name, [daemon]) as agent:
        image_id = daemon.add_image(image)["image_id"]
        daemon.ask("POST", "/rooms", {"name": "lab", "room_id": "lab"})
        ids = wait_online(daemon, [name])
        daemon.ask("PATCH", f"/machines/{ids[name]}", {"room_id": "lab"})
        daemon.ask("PUT", "/rooms/lab/template", {"text": 'hostname = "other"'})
        plan = {"image": image_id, "room_id": "lab"}
        refused = daemon.api.post("/casts", json=plan)
        assert (refused.status_code, "rooms patch-set upload lab" in refused.text) == (409, True)
        command = ("sender", "rooms", "patch-set", "upload", "lab", folder, "--server", daemon.url)
        _diskcast(*command, "--token-file", daemon.token_file)
        cast_id = daemon.create_cast(image_id, room_id="lab")
        daemon.wait_phase(cast_id, "done")
        [line] = daemon.history(cast_id=cast_id)
        index = json.loads((folder / "index.json").read_text())
        assert line["patch_id"] == index["machines"][0]["patch_id"]
        target = agent.target
    _diskcast("receiver", "compare", image, "--target", target, "--patch", folder / f"{name}.dcp")
