"""Patches of a cast. Lost if these fail: clones, or one machine's mistake that stops the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from protocol.errors import ConfigurationError, JoinRefusedError
from protocol.model.session_records import JoinRequest
from protocol.patch.machine_patch import parse_patch_untrusted
from protocol.patch.patch_set import PatchSet, SignedPatchSet
from protocol.trust.statement import ImageStatement, PatchPolicy
from sender.daemon.patching import room_patches
from sender.daemon.patching.patch_maker import PatchMaker
from sender.daemon.patching.room_patches import RoomPatches
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature, SignatureState
from sender.library.library import Library
from sender.patches.patch_bundle import build_bundle
from sender.store.records.casts import CastPlan
from sender.store.repositories.audit import AuditNote
from sender.store.store import Store
from tests.store.samples import machine, room
from tests.support.patch_rooms import make_golden_image
from tests.support.signing import signed_bytes

NOTE = AuditNote("anna")
TEMPLATE = 'hostname = "{{ hostname }}"\n'


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageFile]:
    with ImageFile.open(make_golden_image(tmp_path_factory.mktemp("golden"))) as image:
        yield image


UNSIGNED = ImageSignature(SignatureState.UNSIGNED)


def _maker(store: Store) -> PatchMaker:
    return PatchMaker(store, cast("Library", None))


def _room(store: Store, hostnames: list[str]) -> list[str]:
    """Add a room with a machine for each host name; empty for a machine without variables."""
    store.rooms.add(room())
    store.patch_inputs.put_template("lab", TEMPLATE, audit=NOTE)
    ids = []
    for number, hostname in enumerate(hostnames, 1):
        fields = {"room_id": "lab", "macs": (f"52:54:00:00:00:{number:02x}",), "serial": f"SN{number}"}
        ids.append(store.machines.add(machine(f"PC {number}", **fields)).machine_id)
        if hostname:
            store.patch_inputs.put_variables({ids[-1]: {"hostname": hostname}}, audit=NOTE)
    return ids


def _prepare(
    store: Store, image: ImageFile, ids: list[str], signature: ImageSignature = UNSIGNED
) -> RoomPatches:
    plan = CastPlan(image.manifest.image_id.hex(), "lab")
    prepared = asyncio.run(_maker(store).prepare(plan, ids, image.manifest, signature))
    assert prepared is not None
    return prepared


def _signature(image: ImageFile, policy: PatchPolicy) -> ImageSignature:
    statement = ImageStatement(image.manifest.image_id, "golden", 1, patches=policy)
    return ImageSignature(SignatureState.SIGNED, None, statement)


def _join(machine_id: str | None) -> JoinRequest:
    return JoinRequest("a" * 16, "pc", {}, False, None, "10.0.0.9", machine_id=machine_id)


def test_two_daemons_make_the_same_patches_of_the_same_settings(store: Store, golden: ImageFile) -> None:
    ids = _room(store, ["a", "b", "c"])
    one, two = _prepare(store, golden, ids), _prepare(store, golden, ids[::-1])
    found = [one.outcome_of(machine_id) for machine_id in ids]
    assert found == [two.outcome_of(machine_id) for machine_id in ids]
    patch_ids = {outcome.patch_id for outcome in found if outcome is not None}
    assert len(patch_ids) == 3
    for number, outcome in enumerate(found, 1):
        assert outcome is not None
        assert outcome.patch_id is not None
        patch = parse_patch_untrusted(asyncio.run(one.read(outcome.patch_id)))
        assert (patch.machine_id, patch.image_id) == (f"SN{number}", golden.manifest.image_id)


def test_a_machine_without_valid_settings_fails_alone(store: Store, golden: ImageFile) -> None:
    ids = _room(store, ["a", "", "A", "not valid", "e"])
    patches = _prepare(store, golden, ids)
    problems = patches.problems()
    assert list(problems) == ids[1:4]
    assert "machine PC 2: there is no variable 'hostname'" in problems[ids[1]]
    assert "'A' is the host name of PC 1 too" in problems[ids[2]]
    assert "machine PC 4: 'not valid' can't be used" in problems[ids[3]]
    assert asyncio.run(patches.find(_join(ids[4]))) is not None
    for machine_id in (*ids[1:4], None):
        with pytest.raises(JoinRefusedError, match="machine patch"):
            asyncio.run(patches.find(_join(machine_id)))


def test_a_machine_that_comes_to_the_room_later_gets_its_patch_too(store: Store, golden: ImageFile) -> None:
    ids = _room(store, ["a"])
    patches = _prepare(store, golden, ids)
    late = store.machines.add(machine("late", room_id="lab", serial="SN9")).machine_id
    store.patch_inputs.put_variables({late: {"hostname": "late"}}, audit=NOTE)
    assert patches.outcome_of(late) is None
    patch_id = asyncio.run(patches.find(_join(late)))
    assert patch_id is not None
    assert parse_patch_untrusted(asyncio.run(patches.read(patch_id))).machine_id == "SN9"
    with pytest.raises(JoinRefusedError, match="was removed"):
        asyncio.run(patches.find(_join("nobody")))


def test_the_patches_of_a_cast_have_a_limit(
    store: Store, golden: ImageFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_patches, "PATCHES_BYTES_MAX", 1000)
    ids = _room(store, ["a", "b", "c"])
    assert "put large files into the image" in _prepare(store, golden, ids).problems()[ids[2]]


def test_a_plain_cast_and_a_room_without_a_template_have_no_patches(store: Store, golden: ImageFile) -> None:
    ids = _room(store, ["a"])
    plans = [CastPlan("ab" * 32, "lab", plain=True)]
    store.rooms.add(room("attic"))
    plans.append(CastPlan("ab" * 32, "attic"))
    for plan in plans:
        assert asyncio.run(_maker(store).prepare(plan, ids, golden.manifest, UNSIGNED)) is None
    # Without a room, each machine gets the settings of its own room.
    other = store.machines.add(machine("other", room_id="attic", serial="SN8")).machine_id
    plan = CastPlan("ab" * 32, None, (*ids, other))
    mixed = asyncio.run(_maker(store).prepare(plan, [*ids, other], golden.manifest, UNSIGNED))
    assert mixed is not None
    assert asyncio.run(mixed.find(_join(ids[0]))) is not None
    assert asyncio.run(mixed.find(_join(other))) is None


def test_an_image_that_allows_no_patches_is_refused(store: Store, golden: ImageFile, tmp_path: Path) -> None:
    ids = _room(store, ["a"])
    for policy, reason in (
        (PatchPolicy.NONE, "allows none"),
        (PatchPolicy.SIGNED, "rooms patch-set upload lab"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            _prepare(store, golden, ids, _signature(golden, policy))
    assert not _prepare(store, golden, ids, _signature(golden, PatchPolicy.DAEMON)).problems()
    bare_path = make_golden_image(tmp_path, seed_partition=False)
    refusal = r"room lab has a template, but .* has no seed partition.*--plain"
    with ImageFile.open(bare_path) as bare, pytest.raises(ConfigurationError, match=refusal):
        _prepare(store, bare, ids)


def test_an_image_that_needs_signed_patches_gets_those_of_the_uploaded_set(
    store: Store, golden: ImageFile
) -> None:
    ids = _room(store, ["a", "b", ""])
    made = _prepare(store, golden, ids)
    found = [made.outcome_of(machine_id) for machine_id in ids[:2]]
    data = [asyncio.run(made.read(one.patch_id)) for one in found if one is not None and one.patch_id]
    patches = [parse_patch_untrusted(one) for one in data]
    patch_set = PatchSet(
        golden.manifest.image_id, "lab", {patch.machine_id: patch.patch_id for patch in patches}
    )
    set_file = SignedPatchSet(signed_bytes(patch_set.statement()), patch_set.lines()).to_bytes()
    bundle = build_bundle(set_file, data)
    store.patch_inputs.put_set("lab", golden.manifest.image_id.hex(), "lab", 2, bundle, audit=NOTE)
    store.patch_inputs.remove_template("lab", audit=NOTE)
    prepared = _prepare(store, golden, ids, _signature(golden, PatchPolicy.SIGNED))
    assert [prepared.outcome_of(machine_id) for machine_id in ids[:2]] == found
    assert asyncio.run(prepared.signed_set()) == set_file
    assert "the signed set 'lab' has no patch for PC 3" in prepared.problems()[ids[2]]
    other = store.machines.add(machine("other", serial="SN7", room_id=store.rooms.add(room("attic")).room_id))
    store.patch_inputs.put_template("attic", TEMPLATE, audit=NOTE)
    plan = CastPlan(golden.manifest.image_id.hex(), None, (*ids, other.machine_id))
    with pytest.raises(ConfigurationError, match="one room at a time"):
        asyncio.run(
            _maker(store).prepare(
                plan, plan.machine_ids, golden.manifest, _signature(golden, PatchPolicy.SIGNED)
            )
        )
