"""Fuzz targets of machine patches: what a daemon or a file hands to a machine before its disk is written."""

from __future__ import annotations

from blake3 import blake3

from protocol.errors import PatchRefusedError
from protocol.patch.machine_patch import PATCH_HEAD_BYTES, build_patch, parse_patch_untrusted
from protocol.patch.patch_set import PatchSet, SignedPatchSet, parse_patch_set_untrusted
from sender.patches.patch_bundle import PatchBundle, build_bundle
from tests.fuzz.target import Target
from tests.support.signing import signed_bytes

BLOCK_BYTES = 64 * 1024
RAW_BYTES = 5 * BLOCK_BYTES + 4096


def _patches() -> list[bytes]:
    contents = {
        1: b"hostname: pc-07\n" * (BLOCK_BYTES // 16),
        3: bytes(BLOCK_BYTES),
        5: blake3(b"keys").digest(length=4096),
    }
    return [
        build_patch(
            bytes(32),
            machine,
            raw_bytes=RAW_BYTES,
            block_bytes=BLOCK_BYTES,
            contents=dict(list(contents.items())[:count]),
        ).data
        for machine, count in (("pc-07", 1), ("0123-é", 3))
    ]


def _parse_patch(data: bytes) -> None:
    patch = parse_patch_untrusted(data)
    assert patch.machine_id.isprintable()
    assert patch.payload_offset >= PATCH_HEAD_BYTES
    assert sum(len(patch.stored(row)) for row in range(patch.blocks.size)) == len(data) - patch.payload_offset


def _set() -> PatchSet:
    return PatchSet(bytes(32), "lab", {f"pc {number:02}": bytes([number]) * 32 for number in range(3)})


def _sets() -> list[bytes]:
    patch_set = _set()
    return [SignedPatchSet(signed_bytes(patch_set.statement()), patch_set.lines()).to_bytes()]


def _bundles() -> list[bytes]:
    patches = [parse_patch_untrusted(data) for data in _patches()]
    patch_set = PatchSet(bytes(32), "lab", {patch.machine_id: patch.patch_id for patch in patches})
    signed = SignedPatchSet(signed_bytes(patch_set.statement()), patch_set.lines()).to_bytes()
    return [build_bundle(signed, [patch.data for patch in patches])]


def _parse_bundle(data: bytes) -> None:
    bundle = PatchBundle.from_bytes_untrusted(data)
    assert bundle.patches.keys() == bundle.patch_set.patch_ids.keys()


def _parse_set(data: bytes) -> None:
    """Split as the parts of a set's file are; the signature is another target's."""
    statement, _, lines = data.partition(b"\n\n")
    found = parse_patch_set_untrusted(statement + b"\n", lines)
    assert (found.statement(), found.lines()) == (statement + b"\n", lines)


TARGETS = (
    Target("machine patch", _parse_patch, (PatchRefusedError,), _patches),
    Target("bundle of a patch set", _parse_bundle, (PatchRefusedError,), _bundles),
    Target("file of a patch set", SignedPatchSet.from_bytes_untrusted, (PatchRefusedError,), _sets),
    Target(
        "patch set",
        _parse_set,
        (PatchRefusedError,),
        lambda: [_set().statement() + b"\n" + _set().lines()],
    ),
)
