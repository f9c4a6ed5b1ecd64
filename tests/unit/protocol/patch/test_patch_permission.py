"""The decision about a patch: a patch can give root to anybody, so each rule that a test leaves out is a hole."""

from __future__ import annotations

import dataclasses
import datetime

import pytest

from protocol.disk.disk_layout import layout_metadata
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.errors import PatchRefusedError
from protocol.patch.effective_manifest import effective_manifest
from protocol.patch.patch_permission import PatchGrounds, require_permitted
from protocol.patch.patch_set import PatchSet, SignedPatchSet, parse_patch_set_untrusted
from protocol.trust.image_policy import AcceptedImage
from protocol.trust.statement import PatchPolicy, SignedStatement
from protocol.trust.trusted_keys import TrustedKeys
from tests.support.disks.disk_images import BLOCK_BYTES, make_image
from tests.support.patches import MACHINE, accepted, make_patch, signed_set
from tests.support.signing import KEYS, NOW, STRANGER, signed_bytes


def _partition(number: int, start_blocks: float, stop_blocks: float) -> Partition:
    start = int(start_blocks * BLOCK_BYTES)
    return Partition(number, start, int(stop_blocks * BLOCK_BYTES) - start, "linux", "", "")


LAYOUT = DiskLayout(
    TableKind.GPT, 512, (_partition(1, 2, 4.5), _partition(2, 4.5, 7), _partition(3, 8, 10)), (), ""
)
METADATA: dict[str, object] = {"layout": layout_metadata(LAYOUT)}
MADE = make_image("drdrdrdrdrdd", metadata={**METADATA, "seed_partition": 3})
NO_SEED = make_image("drdrdrdrdrdd", metadata=METADATA)
OTHER = make_image("drdrdrdrdrdd", seed=2)
SEED_PATCH = make_patch(MADE.manifest, {8: "d"})


def _grounds(policy: PatchPolicy, partitions: str | None = None, **others: object) -> PatchGrounds:
    grounds = PatchGrounds(accepted(MADE, policy, partitions), frozenset([MACHINE, "0123"]))
    return dataclasses.replace(grounds, **others)  # type: ignore[arg-type]


def test_the_daemons_word_suffices_where_the_statement_says_so() -> None:
    require_permitted(
        SEED_PATCH, MADE.manifest, _grounds(PatchPolicy.DAEMON, assigned_id=SEED_PATCH.patch_id)
    )
    require_permitted(SEED_PATCH, MADE.manifest, _grounds(PatchPolicy.DAEMON))


def test_no_patch_is_applied_where_the_statement_says_none() -> None:
    patch_set = signed_set([SEED_PATCH]).verify(KEYS, NOW)
    with pytest.raises(PatchRefusedError, match="allows none"):
        require_permitted(
            SEED_PATCH,
            MADE.manifest,
            _grounds(PatchPolicy.NONE, "all", assigned_id=SEED_PATCH.patch_id, patch_set=patch_set),
        )


def test_a_signed_set_is_needed_where_the_statement_says_signed() -> None:
    grounds = _grounds(PatchPolicy.SIGNED, assigned_id=SEED_PATCH.patch_id)
    with pytest.raises(PatchRefusedError, match="requires a signed set"):
        require_permitted(SEED_PATCH, MADE.manifest, grounds)
    patch_set = signed_set([SEED_PATCH]).verify(KEYS, NOW)
    require_permitted(SEED_PATCH, MADE.manifest, dataclasses.replace(grounds, patch_set=patch_set))


@pytest.mark.parametrize(
    "in_set",
    [
        make_patch(MADE.manifest, {8: "r"}),
        make_patch(MADE.manifest, {8: "d"}, machine_id="pc-08"),
        make_patch(OTHER.manifest, {8: "d"}),
    ],
    ids=["another patch", "another machine", "another image"],
)
def test_a_set_without_this_patch_does_not_count(in_set: object) -> None:
    patch_set = signed_set([in_set]).verify(KEYS, NOW)  # type: ignore[list-item]
    with pytest.raises(PatchRefusedError, match="signed set"):
        require_permitted(SEED_PATCH, MADE.manifest, _grounds(PatchPolicy.SIGNED, patch_set=patch_set))


def test_patches_of_other_machines_and_images_are_refused() -> None:
    with pytest.raises(PatchRefusedError, match="for the machine 'pc-08'"):
        require_permitted(
            make_patch(MADE.manifest, {8: "d"}, machine_id="pc-08"),
            MADE.manifest,
            _grounds(PatchPolicy.DAEMON),
        )
    foreign = make_patch(OTHER.manifest, {8: "d"})
    with pytest.raises(PatchRefusedError, match="for the image"):
        require_permitted(foreign, MADE.manifest, _grounds(PatchPolicy.DAEMON))
    with pytest.raises(PatchRefusedError, match="for the image"):
        effective_manifest(MADE.manifest, foreign)


def test_another_patch_than_the_assigned_one_is_refused() -> None:
    with pytest.raises(PatchRefusedError, match="assigned"):
        require_permitted(SEED_PATCH, MADE.manifest, _grounds(PatchPolicy.DAEMON, assigned_id=bytes(32)))


@pytest.mark.parametrize(
    ("partitions", "blocks", "refusal"),
    [
        (None, (8, 9), ""),
        (None, (7,), "block 7 .* is outside"),
        (None, (0,), "block 0 .* is outside"),
        (None, (10,), "block 10 .* is outside"),
        ("1", (2, 3), ""),
        ("1", (4,), "block 4 .* straddles"),
        ("1", (8,), "block 8 .* is outside"),
        ("1,2", (2, 4, 6), ""),
        ("all", (0, 11), ""),
        ("9", (8,), "no partition 9"),
        ("1,x", (2,), "numbers or all"),
    ],
)
def test_only_allowed_partitions_are_changed(
    partitions: str | None, blocks: tuple[int, ...], refusal: str
) -> None:
    """A daemon that may set a host name must not be able to replace the kernel."""
    patch = make_patch(MADE.manifest, dict.fromkeys(blocks, "d"))
    grounds = _grounds(PatchPolicy.DAEMON, partitions)
    if not refusal:
        require_permitted(patch, MADE.manifest, grounds)
        return
    with pytest.raises(PatchRefusedError, match=refusal):
        require_permitted(patch, MADE.manifest, grounds)


def test_without_a_seed_partition_nothing_is_allowed_by_default() -> None:
    patch = make_patch(NO_SEED.manifest, {8: "d"})
    grounds = PatchGrounds(accepted(NO_SEED, PatchPolicy.DAEMON, None), frozenset([MACHINE]))
    with pytest.raises(PatchRefusedError, match="no seed partition"):
        require_permitted(patch, NO_SEED.manifest, grounds)


def test_an_image_accepted_without_a_signature_has_no_limits() -> None:
    unsigned = AcceptedImage(MADE.manifest.image_id, "made", None, "not signed")
    require_permitted(
        make_patch(MADE.manifest, {0: "d"}), MADE.manifest, PatchGrounds(unsigned, frozenset([MACHINE]))
    )


PATCHES = [make_patch(MADE.manifest, {8: "d"}, machine_id=f"pc {number:02}") for number in range(30)]


def test_one_signature_covers_a_room() -> None:
    read = SignedPatchSet.from_bytes_untrusted(signed_set(PATCHES).to_bytes()).verify(KEYS, NOW)
    assert read.patch_ids == {patch.machine_id: patch.patch_id for patch in PATCHES}
    assert read.image_id == MADE.manifest.image_id


def test_sets_of_strangers_and_altered_or_expired_ones_are_refused() -> None:
    good = signed_set(PATCHES)
    with pytest.raises(PatchRefusedError, match="doesn't trust"):
        signed_set(PATCHES, key=STRANGER).verify(KEYS, NOW)
    with pytest.raises(PatchRefusedError, match="trust"):
        good.verify(TrustedKeys(), NOW)
    swapped = good.lines.replace(b"pc 00", b"pc xx").replace(b"pc 01", b"pc 00").replace(b"pc xx", b"pc 01")
    with pytest.raises(PatchRefusedError, match="don't match"):
        SignedPatchSet(good.signed, swapped).verify(KEYS, NOW)
    with pytest.raises(PatchRefusedError, match="altered"):
        SignedPatchSet(
            SignedStatement(good.signed.statement.replace(b"lab", b"bal"), good.signed.signature), good.lines
        ).verify(KEYS, NOW)
    with pytest.raises(PatchRefusedError, match="expired"):
        signed_set(PATCHES, not_after=NOW - datetime.timedelta(days=1)).verify(KEYS, NOW)
    signed_set(PATCHES, not_after=NOW + datetime.timedelta(days=1)).verify(KEYS, NOW)


def test_a_set_has_one_form() -> None:
    patch_set = PatchSet(MADE.manifest.image_id, "lab", {"pc-01": bytes(32)})
    statement, lines = patch_set.statement(), patch_set.lines()
    assert parse_patch_set_untrusted(statement, lines) == patch_set
    for other in (
        statement.upper(),
        statement[:-1],
        statement + b"x-more: 1\n",
        statement.replace(b"count: 1", b"count: 01"),
        b"diskcast-image-v1\n" + statement.partition(b"\n")[2],
    ):
        with pytest.raises(PatchRefusedError):
            SignedPatchSet(signed_bytes(other), lines).verify(KEYS, NOW)
