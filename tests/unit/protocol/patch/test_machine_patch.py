"""Machine patches: what arrives is exactly what was made, and nothing else is taken for a patch."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.errors import ConfigurationError, PatchRefusedError
from protocol.image.manifest import BlockKind
from protocol.patch.machine_patch import PATCH_BLOCKS_MAX, PATCH_BYTES_MAX, build_patch, parse_patch_untrusted
from tests.support.disks.disk_images import BLOCK_BYTES, make_image
from tests.support.patches import MACHINE, contents_of, make_patch

MADE = make_image("drzudrzd", tail_bytes=1234)
PATCH = make_patch(MADE.manifest, {1: "d", 3: "r", 4: "z", 7: "d"})


def test_a_patch_is_read_as_it_was_made() -> None:
    read = parse_patch_untrusted(PATCH.data)
    assert (read.image_id, read.machine_id, read.patch_id) == (
        MADE.manifest.image_id,
        MACHINE,
        PATCH.patch_id,
    )
    assert read.blocks.tolist() == [1, 3, 4, 7]
    assert read.kind.tolist() == [BlockKind.DATA, BlockKind.RAW, BlockKind.ZERO, BlockKind.DATA]
    assert contents_of(read)[7] == contents_of(PATCH)[7]
    assert len(contents_of(read)[7]) == 1234
    assert (read.row_of(3), read.row_of(2), read.row_of(9)) == (1, None, None)


def test_equal_inputs_give_equal_patches() -> None:
    """Two daemons must agree on the id of a machine's patch."""
    again = make_patch(MADE.manifest, {7: "d", 1: "d", 4: "z", 3: "r"}, seed=7)
    ordered = build_patch(
        MADE.manifest.image_id,
        MACHINE,
        raw_bytes=MADE.manifest.raw_bytes,
        block_bytes=BLOCK_BYTES,
        contents=dict(reversed(contents_of(PATCH).items())),
    )
    assert ordered.data == PATCH.data
    assert again.patch_id != PATCH.patch_id, "other contents"


def test_every_altered_byte_is_refused_or_changes_the_id() -> None:
    """The payload has no part in the id, so its hashes must hold it."""
    rng = np.random.default_rng(1)
    places = [
        *range(PATCH.payload_offset),
        *rng.integers(PATCH.payload_offset, len(PATCH.data), 200).tolist(),
    ]
    for place in places:
        altered = bytearray(PATCH.data)
        altered[place] ^= 1 << int(rng.integers(8))
        try:
            read = parse_patch_untrusted(bytes(altered))
        except PatchRefusedError:
            continue
        assert read.patch_id != PATCH.patch_id
        assert place < PATCH.payload_offset


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PATCH.data[:100],
        PATCH.data[:-1],
        PATCH.data + b"\0",
        PATCH.data[: PATCH.payload_offset],
        b"x" * 4096,
    ],
    ids=["empty", "head", "short", "long", "no payload", "other"],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(PatchRefusedError, match="the machine patch is refused"):
        parse_patch_untrusted(data)


def test_a_patch_is_bounded() -> None:
    with pytest.raises(PatchRefusedError, match="at most"):
        parse_patch_untrusted(PATCH.data + bytes(PATCH_BYTES_MAX))
    many = {block: bytes(BLOCK_BYTES) for block in range(PATCH_BLOCKS_MAX + 1)}
    with pytest.raises(ConfigurationError, match="blocks"):
        build_patch(bytes(32), MACHINE, raw_bytes=1 << 40, block_bytes=BLOCK_BYTES, contents=many)


@pytest.mark.parametrize("machine_id", ["", " pc", "pc\n07", "x" * 65, "pc\0"])
def test_a_machine_id_is_one_line(machine_id: str) -> None:
    """It becomes part of the lines that a signer signs."""
    with pytest.raises(ConfigurationError, match="machine"):
        make_patch(MADE.manifest, {1: "d"}, machine_id=machine_id)


def test_secrets_of_a_patch_are_in_no_repr() -> None:
    assert "data" not in repr(PATCH)
