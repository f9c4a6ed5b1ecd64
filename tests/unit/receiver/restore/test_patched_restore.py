"""Restores with a machine patch: the disk is image and patch together, or it doesn't boot, or it wasn't touched."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import PatchRefusedError, UnsignedImageError, VerificationError
from protocol.image.incomplete_marker import parse_marker_untrusted
from protocol.patch.effective_manifest import machine_digest
from protocol.patch.machine_patch import MachinePatch
from protocol.trust.statement import PatchPolicy
from receiver.restore.patched_image import PatchChoice
from receiver.restore.restore_image import compare, restore
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.kernel_command_line import KernelTrust
from tests.support.disks.disk_images import BLOCK_BYTES, make_image
from tests.support.disks.recorded_disk import RecordedDisk
from tests.support.disks.write_log import PowerCuts
from tests.support.patches import MACHINE, make_patch, patched, signed_set, statement_of, write_patch
from tests.support.signing import TRUSTED
from tests.unit.receiver.restore.test_restore_image import Recorder

EDGE = MIB // BLOCK_BYTES
MADE = make_image("drzd" * 12 + "d", tail_bytes=4096)
LAST = MADE.manifest.block_count - 1
PATCH = make_patch(MADE.manifest, {0: "d", 5: "r", 20: "z", 22: "d", 25: "d", LAST: "r"})
"""Changes the first and the last block, blocks within the edges and beyond, and every kind of block."""
CUSTOMISED = patched(MADE.raw, PATCH)
OLD = random.Random(1).randbytes(len(MADE.raw))


def _trust(folder: Path, *, trusted: bool = True, allow_unsigned: bool = False) -> TrustOptions:
    return TrustOptions(
        keys=(TRUSTED,) if trusted else (),
        directory=folder / "none",
        allow_unsigned=allow_unsigned,
        kernel=KernelTrust,
    )


def _choice(
    folder: Path, patch: MachinePatch, *, machine: str = MACHINE, trusted: bool = True
) -> PatchChoice:
    return PatchChoice(
        write_patch(folder, patch), None, frozenset([machine]), _trust(folder, trusted=trusted)
    )


def _image(folder: Path, policy: PatchPolicy = PatchPolicy.DAEMON, partitions: str | None = "all") -> Path:
    return MADE.write(folder / "made.dci", statement=statement_of(MADE, policy, partitions))


@pytest.mark.parametrize("old", [OLD, MADE.raw, CUSTOMISED, b""], ids=["other", "image", "customised", "new"])
def test_the_disk_equals_the_image_and_its_patch(tmp_path: Path, old: bytes) -> None:
    image, choice, target = _image(tmp_path), _choice(tmp_path, PATCH), tmp_path / "target"
    if old:
        target.write_bytes(old)
    recorder = Recorder()
    restore(image, target, recorder, patch_choice=choice)
    assert target.read_bytes() == CUSTOMISED
    assert recorder.fields["patch_id"] == PATCH.patch_id.hex()
    assert recorder.fields["machine_digest"] == machine_digest(PATCH.image_id, PATCH.patch_id).hex()
    if old == CUSTOMISED:
        assert recorder.fields["bytes_written"] == 0
    compared = Recorder()
    compare(image, target, compared, choice.path)
    assert compared.fields["patch_id"] == PATCH.patch_id.hex()
    with pytest.raises(VerificationError, match=r"differs from made in 6 of"):
        compare(image, target, Recorder())


def test_compare_finds_a_disk_without_its_patch(tmp_path: Path) -> None:
    image, target = _image(tmp_path), tmp_path / "target"
    target.write_bytes(MADE.raw)
    with pytest.raises(VerificationError, match=rf"with the patch of {MACHINE} in 6 of"):
        compare(image, target, Recorder(), write_patch(tmp_path, PATCH))


@pytest.mark.parametrize("base", [OLD, MADE.raw], ids=["another system", "the image without a patch"])
def test_no_power_cut_leaves_a_complete_disk_without_its_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: bytes
) -> None:
    """Otherwise a machine of the room boots with the name and the keys of every other one."""
    image, choice, disk = _image(tmp_path), _choice(tmp_path, PATCH), RecordedDisk(tmp_path / "target", base)
    with disk.recorded(monkeypatch):
        restore(image, disk.path, Recorder(), patch_choice=choice)
    assert disk.path.read_bytes() == CUSTOMISED
    cuts, rng = PowerCuts(base, disk.log), random.Random(4)
    drawn = [*cuts.at_flushes(), *cuts.suffixes_dropped(), *cuts.torn(rng, 3), *cuts.reordered(rng, 6)]
    seen = set()
    for cut, left in cuts.disks(drawn):
        marker = parse_marker_untrusted(left[:512])
        if left == base:
            seen.add("old")
        elif left == CUSTOMISED:
            seen.add("customised")
        else:
            assert marker is not None, f"{cut}: neither old nor marked nor customised"
            assert marker.image_id == PATCH.image_id
            seen.add("marked")
    assert seen == {"old", "marked", "customised"}


SEED_ONLY = make_patch(MADE.manifest, {25: "d"})
OTHER_IMAGE = make_image("drzd" * 12 + "d", tail_bytes=4096, seed=5)


@pytest.mark.parametrize(
    ("policy", "partitions", "patch", "machine", "refusal"),
    [
        (PatchPolicy.NONE, "all", PATCH, MACHINE, "allows none"),
        (PatchPolicy.SIGNED, "all", PATCH, MACHINE, "requires a signed set"),
        (PatchPolicy.DAEMON, "all", PATCH, "pc-08", "for the machine"),
        (PatchPolicy.DAEMON, "all", make_patch(OTHER_IMAGE.manifest, {0: "d"}), MACHINE, "for the image"),
        (PatchPolicy.DAEMON, None, SEED_ONLY, MACHINE, "no seed partition"),
        (PatchPolicy.DAEMON, "3", SEED_ONLY, MACHINE, "no partition 3"),
    ],
    ids=["none", "unsigned set", "another machine", "another image", "no seed", "outside"],
)
def test_a_refused_patch_leaves_the_target_alone(
    tmp_path: Path,
    policy: PatchPolicy,
    partitions: str | None,
    patch: MachinePatch,
    machine: str,
    refusal: str,
) -> None:
    target = tmp_path / "target"
    target.write_bytes(OLD)
    with pytest.raises(PatchRefusedError, match=refusal) as refused:
        restore(
            _image(tmp_path, policy, partitions),
            target,
            Recorder(),
            patch_choice=_choice(tmp_path, patch, machine=machine),
        )
    assert refused.value.exit_code == 96
    assert target.read_bytes() == OLD


def test_an_altered_patch_leaves_the_target_alone(tmp_path: Path) -> None:
    target, choice = tmp_path / "target", _choice(tmp_path, PATCH)
    target.write_bytes(OLD)
    for place in (0, 20, 40, 90, 130, PATCH.payload_offset + 5, len(PATCH.data) - 1):
        altered = bytearray(PATCH.data)
        altered[place] ^= 1
        choice.path.write_bytes(altered)
        with pytest.raises(PatchRefusedError):
            restore(_image(tmp_path), target, Recorder(), patch_choice=choice)
        assert target.read_bytes() == OLD


def test_a_patch_of_a_signed_set_is_applied(tmp_path: Path) -> None:
    set_path, target = tmp_path / "lab.patches", tmp_path / "target"
    other = make_patch(MADE.manifest, {0: "r"}, machine_id="pc-08")
    set_path.write_bytes(signed_set([PATCH, other]).to_bytes())
    choice = PatchChoice(write_patch(tmp_path, PATCH), set_path, frozenset([MACHINE]), _trust(tmp_path))
    restore(_image(tmp_path, PatchPolicy.SIGNED), target, Recorder(), patch_choice=choice)
    assert target.read_bytes() == CUSTOMISED


def test_a_patch_needs_an_image_that_the_machine_accepts(tmp_path: Path) -> None:
    """Without its signature the image says nothing about patches."""
    target, patch = tmp_path / "target", write_patch(tmp_path, PATCH)
    with pytest.raises(UnsignedImageError):
        restore(_image(tmp_path), target, Recorder(), patch_choice=_choice(tmp_path, PATCH, trusted=False))
    allowed = _trust(tmp_path, trusted=False, allow_unsigned=True)
    choice = PatchChoice(patch, None, frozenset([MACHINE]), allowed)
    restore(MADE.write(tmp_path / "plain.dci", None), target, Recorder(), patch_choice=choice)
    assert target.read_bytes() == CUSTOMISED
