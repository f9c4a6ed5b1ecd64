"""Tests of the patches of a room: small, the same everywhere, private, and built in bounded time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from protocol.constants import MIB
from protocol.disk.disk_layout import layout_metadata
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.disk.seed_partition import SEED_PARTITION_BYTES, SEED_PARTITION_NAME
from protocol.errors import ConfigurationError, PatchRefusedError
from protocol.patch.patch_set import SignedPatchSet
from sender.imaging.image_file import ImageFile
from sender.patches.backends.seed_backend import SeedBackend
from sender.patches.machines_file import load_machines
from sender.patches.patch_builder import SeedPlace
from sender.patches.patch_directory import build_patches, read_patch
from sender.patches.patches_command import patches
from sender.patches.template import load_template
from tests.support.disks.disk_images import make_image
from tests.support.disks.disk_layouts import LINUX_GUID
from tests.support.patch_rooms import TEMPLATE, make_golden_image, seed_content, write_room
from tests.support.signing import KEYS, NOW, SIGNER

ROOM = 30


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image with a seed partition."""
    return make_golden_image(tmp_path_factory.mktemp("golden"))


def build(image: Path, folder: Path, machine_count: int = ROOM, template: str = TEMPLATE) -> Path:
    template_path, machines_path = write_room(folder, machine_count, template=template)
    with ImageFile.open(image) as opened:
        place = SeedBackend(SeedPlace.of(opened.manifest))
        build_patches(place, load_template(template_path), load_machines(machines_path), folder / "out")
    return folder / "out"


def read_index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / "index.json").read_text())
    return index


def test_each_machine_gets_its_name_in_one_small_block(image: Path, tmp_path: Path) -> None:
    folder = build(image, tmp_path)
    entries = read_index(folder)["machines"]
    assert len(entries) == ROOM
    names = set()
    for entry in entries:
        patch = read_patch(folder / entry["file"])
        assert (patch.patch_id.hex(), patch.machine_id) == (entry["patch_id"], entry["machine_id"])
        assert entry["blocks"] == 1
        assert entry["bytes"] < 4096
        seed = tmp_path / "seed.img"
        seed.write_bytes(seed_content(patch))
        subprocess.run(["fsck.fat", "-n", seed], capture_output=True, check=True)
        meta = subprocess.run(["mtype", "-i", seed, "::meta-data"], capture_output=True, check=True).stdout
        names.add(json.loads(meta)["local-hostname"])
    assert names == {f"pc-{number:02}" for number in range(1, ROOM + 1)}


@pytest.mark.parametrize(
    "environment",
    [
        {"TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8", "PYTHONHASHSEED": "1"},
        {"TZ": "America/Caracas", "LC_ALL": "C", "PYTHONHASHSEED": "2", "SOURCE_DATE_EPOCH": "1"},
    ],
)
def test_the_same_inputs_give_the_same_patches_everywhere(
    image: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Two daemons must agree on a patch_id, or a machine is patched again after a takeover."""
    here = build(image, tmp_path)
    elsewhere = tmp_path / "another folder"
    elsewhere.mkdir()
    copy = elsewhere / "renamed.dci"
    copy.write_bytes(image.read_bytes())
    template_path, machines_path = write_room(elsewhere, ROOM)
    # In a user namespace of its own the process has another user id, and reads the same files.
    user = ["unshare", "--user"] if os.geteuid() == 0 else []
    command = [*user, sys.executable, "-m", "sender", "patches", "build", copy, "--template", template_path]
    command += ["--machines", machines_path, "-o", elsewhere / "out"]
    subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd()), **environment},
        capture_output=True,
        check=True,
    )
    assert read_index(elsewhere / "out") == read_index(here)
    for entry in read_index(here)["machines"]:
        assert (elsewhere / "out" / entry["file"]).read_bytes() == (here / entry["file"]).read_bytes()


def test_five_hundred_machines_take_little_memory(image: Path, tmp_path: Path) -> None:
    """The time is printed and not judged, since machines differ; the documentation promises 20 s."""
    tracemalloc.start()
    started_s = time.monotonic()
    folder = build(image, tmp_path, 500)
    duration_s = time.monotonic() - started_s
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    entries = read_index(folder)["machines"]
    print(
        f"500 patches in {duration_s:.1f} s, {peak_bytes / MIB:.1f} MiB, {sum(e['bytes'] for e in entries)} bytes"
    )
    assert len({entry["patch_id"] for entry in entries}) == 500
    assert peak_bytes < 32 * MIB


def test_patches_are_private_even_under_an_open_umask(image: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = build(image, tmp_path, 2)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    assert b"Geheim" not in (folder / "index.json").read_bytes()


def test_nothing_is_written_for_a_room_with_a_mistake(image: Path, tmp_path: Path) -> None:
    same = TEMPLATE.replace('hostname = "{{ name }}"', 'hostname = "LAB"')
    with pytest.raises(
        ConfigurationError, match="hostname, machine pc-02: 'lab' is the host name of pc-01 too"
    ):
        build(image, tmp_path, 3, same)
    with pytest.raises(ConfigurationError, match="machine pc-01: there is no variable 'hall'"):
        build(image, tmp_path, 3, TEMPLATE.replace("{{ ip }}", "{{ hall }}"))
    assert not (tmp_path / "out").exists()


def test_an_image_without_a_seed_partition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="has no seed partition: add one with `diskcast images prepare`"
    ):
        build(make_golden_image(tmp_path, seed_partition=False), tmp_path)


def test_a_disk_with_sectors_that_no_fat_has_is_refused() -> None:
    part = Partition(1, MIB, SEED_PARTITION_BYTES, LINUX_GUID, SEED_PARTITION_NAME)
    layout = layout_metadata(DiskLayout(TableKind.GPT, 512, (part,)))
    metadata = {"layout": layout, "seed_partition": 1, "logical_sector_bytes": 65536}
    with pytest.raises(ConfigurationError, match="sectors of 65536 bytes, for which no seed can be made"):
        SeedPlace.of(make_image("z" * 96, metadata=metadata).manifest)


# -- commands -------------------------------------------------------------------------------------------------


def invoke(*arguments: str | Path) -> str:
    done = CliRunner().invoke(patches, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_no_output_shows_a_secret(image: Path, tmp_path: Path) -> None:
    template_path, machines_path = write_room(tmp_path, 3)
    out = tmp_path / "out"
    for options in ((), ("--json",)):
        built = invoke(
            "build", image, "--template", template_path, "--machines", machines_path, "-o", out, *options
        )
        shown = invoke("show", out / "pc-01.dcp", *options)
        assert "Geheim" not in built + shown
        assert "pc-01" in shown


def test_a_set_is_signed_here(image: Path, tmp_path: Path) -> None:
    folder = build(image, tmp_path, 3)
    key_path = tmp_path / "signing.key"
    key_path.touch(mode=0o600)
    key_path.write_text(SIGNER.file_text())
    invoke("sign", folder, "--key", key_path, "--name", "lab", "--not-after", "2099-01-01")
    signed = SignedPatchSet.from_bytes_untrusted((folder / "patches.signed").read_bytes())
    found = signed.verify(KEYS, NOW)
    assert found.name == "lab"
    assert found.patch_ids == {
        entry["machine_id"]: bytes.fromhex(entry["patch_id"]) for entry in read_index(folder)["machines"]
    }


def test_a_set_is_signed_on_a_machine_without_a_network(image: Path, tmp_path: Path) -> None:
    folder, statement = build(image, tmp_path, 3), tmp_path / "lab.patches"
    invoke("sign", folder, "--name", "lab", "--export", statement)
    signature = SIGNER.sign(statement.read_bytes(), trusted_comment="signed by minisign")
    statement.with_name("lab.patches.minisig").write_text(signature.file_text())
    invoke("sign", folder, "--name", "lab", "--import", statement, "--public-key", SIGNER.public.text)
    found = SignedPatchSet.from_bytes_untrusted((folder / "patches.signed").read_bytes())
    assert len(found.verify(KEYS, NOW).patch_ids) == 3
    (folder / "pc-02.dcp").unlink()
    with pytest.raises(PatchRefusedError, match="don't match its statement"):
        invoke("sign", folder, "--name", "lab", "--import", statement, "--public-key", SIGNER.public.text)
