"""A room of machines from one image: each disk gets its own name, and everything else of the image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.disk.disk_layout import layout_of
from sender.imaging.image_file import ImageFile
from tests.support.disks.devices import loop_device
from tests.support.network import lab
from tests.support.patch_rooms import make_golden_image, write_room
from tests.support.signing import signing_environment
from tests.unit.sender.imaging.test_pack import raw_of

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root"),
]

MACHINES = ("pc-01", "pc-02", "pc-03")


def run(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, **signing_environment()},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("policy", ["daemon", "signed"])
def test_three_machines_read_their_own_names(policy: str, tmp_path: Path) -> None:
    golden = make_golden_image(tmp_path, seed_partition=False)
    template, machines = write_room(tmp_path, len(MACHINES))
    image, folder = tmp_path / "lab.dci", tmp_path / "patches"
    run("sender", "images", "prepare", golden, "-o", image, "--patches", policy)
    run("sender", "patches", "build", image, "--template", template, "--machines", machines, "-o", folder)
    options: list[str | Path] = []
    if policy == "signed":
        run("sender", "patches", "sign", folder)
        options = ["--patch-set", folder / "patches.signed"]
    with ImageFile.open(image) as opened:
        layout = layout_of(opened.manifest.metadata)
        assert layout is not None
        seed = layout.partitions[-1]
    plain = raw_of(image)
    outside = [slice(0, seed.start_bytes), slice(seed.stop_bytes, len(plain))]
    names, identities = [], set()
    for name in MACHINES:
        disk, patch = tmp_path / f"{name}.disk", folder / f"{name}.dcp"
        with disk.open("wb") as file:
            file.truncate(len(plain))
        with loop_device(disk) as device:
            target = ["--target", device, "--patch", patch]
            run("receiver", "restore", image, *target, *options, "--machine", name)
            run("receiver", "compare", image, *target)
            place = ("--offset", str(seed.start_bytes), "--sizelimit", str(seed.size_bytes))
            # Not every kernel has vfat: mtools reads the partition itself.
            with loop_device(disk, "--read-only", *place) as part:
                lab.run("fsck.fat", "-n", part)
                meta = json.loads(lab.run("mtype", "-i", part, "::meta-data"))
                user_data = lab.run("mtype", "-i", part, "::user-data")
        names.append(meta["local-hostname"])
        identities.add(meta["instance-id"])
        assert f'"{name}.lab.example"' in user_data
        content = disk.read_bytes()
        assert all(content[part] == plain[part] for part in outside)
    assert tuple(names) == MACHINES
    assert len(identities) == len(MACHINES)
    # A patch of another machine is refused before the first write.
    before = (tmp_path / "pc-01.disk").read_bytes()
    refused = run(
        "receiver", "restore", image, "--target", tmp_path / "pc-01.disk", "--patch", folder / "pc-02.dcp",
        *options, "--machine", "pc-01", code=96,
    )  # fmt: skip
    assert "for the machine 'pc-02'" in refused
    assert (tmp_path / "pc-01.disk").read_bytes() == before
