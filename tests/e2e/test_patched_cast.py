"""A room in which every machine gets the image with its own patch, by the real programs.

Lost if these fail: clones with one name and one set of keys, or patches that a machine should have refused.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from protocol.patch.machine_patch import MachinePatch
from protocol.trust.statement import PatchPolicy
from tests.support.disks.disk_images import make_image
from tests.support.network.lab import LIMIT_S, diskcast_agent
from tests.support.network.loopback_cast import LoopbackCast
from tests.support.patches import make_patch, patched, signed_set, statement_of, write_patch

MADE = make_image("drzd" * 24 + "d", tail_bytes=4096)
BLOCKS = {0: "d", 5: "r", 40: "z", 42: "d", MADE.manifest.block_count - 1: "r"}
MACHINES = [f"pc-{number:02}" for number in range(6)]
PATCHES = [
    make_patch(MADE.manifest, BLOCKS, machine_id=machine, seed=number)
    for number, machine in enumerate(MACHINES)
]


def _image(folder: Path, policy: PatchPolicy = PatchPolicy.DAEMON, partitions: str | None = "all") -> Path:
    return MADE.write(folder / "made.dci", statement=statement_of(MADE, policy, partitions))


def _folder(folder: Path, patches: list[MachinePatch]) -> Path:
    path = folder / "patches"
    path.mkdir(exist_ok=True)
    for patch in patches:
        write_patch(path, patch)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_machine_gets_its_own_disk_and_a_second_cast_sends_nothing(tmp_path: Path) -> None:
    image, patches = _image(tmp_path), _folder(tmp_path, PATCHES)
    targets = [tmp_path / machine for machine in MACHINES]
    for repeated in (False, True):
        with LoopbackCast(image, "--wait-for", str(len(MACHINES)), "--patches", str(patches)) as cast:
            agents = [
                cast.receive(target, "--name", machine)
                for machine, target in zip(MACHINES, targets, strict=True)
            ]
            for agent in agents:
                assert agent.wait(LIMIT_S) == 0, agent.describe()
            assert cast.sender.wait(LIMIT_S) == 0, cast.sender.describe()
            results = [agent.wait_event("result", 1) for agent in agents]
        for patch, target, result in zip(PATCHES, targets, results, strict=True):
            assert target.read_bytes() == patched(MADE.raw, patch)
            assert result["patch_id"] == patch.patch_id.hex()
            if repeated:
                assert result["bytes_written"] == 0
        assert len({result["machine_digest"] for result in results}) == len(MACHINES)
    assert len({_digest(target) for target in targets}) == len(MACHINES)
    for machine, target in zip(MACHINES, targets, strict=True):
        compared = diskcast_agent(
            "compare", image, "--target", target, "--patch", patches / f"{machine}.dcp", "--json"
        )
        subprocess.run(compared, check=True, capture_output=True)


def test_a_patch_of_the_signed_set_is_written(tmp_path: Path) -> None:
    image, patches = _image(tmp_path, PatchPolicy.SIGNED), _folder(tmp_path, PATCHES[:2])
    (patches / "patches.signed").write_bytes(signed_set(PATCHES).to_bytes())
    target = tmp_path / "target"
    with LoopbackCast(image, "--patches", str(patches)) as cast:
        agent = cast.receive(target, "--name", MACHINES[1])
        assert agent.wait(LIMIT_S) == 0, agent.describe()
    assert target.read_bytes() == patched(MADE.raw, PATCHES[1])


def test_a_machine_without_a_patch_is_not_admitted(tmp_path: Path) -> None:
    """It would become a clone of the golden image."""
    image, patches = _image(tmp_path), _folder(tmp_path, PATCHES[:1])
    target = tmp_path / "target"
    with LoopbackCast(image, "--patches", str(patches)) as cast:
        agent = cast.receive(target, "--name", "pc-99")
        assert agent.wait(LIMIT_S) == 45, agent.describe()
    assert not target.exists()
