"""The effective manifest describes the patched disk as if it had been packed: nothing else is verified later."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.image.block_codec import BlockEncoder, block_hash
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.stored_manifest import StoredManifest
from protocol.patch.effective_manifest import effective_manifest
from tests.support.disks.disk_images import BLOCK_BYTES, make_image
from tests.support.patches import make_patch, patched


@st.composite
def _cases(draw: st.DrawFn) -> tuple[str, int, dict[int, str]]:
    kinds = draw(st.text("drzu", min_size=1, max_size=12))
    tail = draw(st.sampled_from([4096, 9999, BLOCK_BYTES]))
    blocks = draw(
        st.dictionaries(
            st.integers(0, len(kinds) - 1), st.sampled_from("drz"), min_size=1, max_size=len(kinds)
        )
    )
    return kinds, tail, blocks


@given(case=_cases(), in_file=st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_effective_manifest_equals_the_one_of_the_patched_disk(
    case: tuple[str, int, dict[int, str]], in_file: bool
) -> None:
    kinds, tail, blocks = case
    made = make_image(kinds, tail_bytes=tail)
    manifest = made.manifest
    if in_file:
        data = bytes(manifest.data[:])

        def read(start: int, into: memoryview) -> None:
            into[:] = data[start : start + len(into)]

        manifest = Manifest.parse_untrusted(StoredManifest(len(data), read, "image"))
    patch = make_patch(manifest, blocks)
    effective = effective_manifest(manifest, patch)
    disk, encoder = patched(made.raw, patch), BlockEncoder(3, BLOCK_BYTES)
    for block in range(manifest.block_count):
        raw = memoryview(disk)[block * BLOCK_BYTES :][: manifest.raw_length(block)]
        if kinds[block] == "u" and block not in blocks:
            expected = (BlockKind.UNUSED, b"", bytes(32), bytes(32))
        elif not any(raw):
            expected = (BlockKind.ZERO, b"", bytes(32), block_hash(raw))
        else:
            kind, stored = encoder.encode(raw)
            expected = (kind, bytes(stored), block_hash(stored), block_hash(raw))
        found = (
            effective.kind[block],
            effective.stored_bytes[block],
            effective.stored_hash[block].tobytes(),
            effective.raw_hash[block].tobytes(),
        )
        assert found == (expected[0], len(expected[1]), *expected[2:])
    everything = np.arange(manifest.block_count)
    for column in (effective.stored_hash, effective.raw_hash):
        one_by_one = np.stack([column[block] for block in range(manifest.block_count)])
        assert np.array_equal(column[0 : manifest.block_count], one_by_one)
        assert np.array_equal(column[everything], one_by_one)
        assert np.array_equal(column[everything[::2]], one_by_one[::2])
        assert np.array_equal(column[1:], one_by_one[1:])
    assert effective.image_id == manifest.image_id
    assert effective.payload_bytes == int(effective.stored_bytes.sum())
    assert manifest.payload_bytes == sum(map(len, made.stored)), "the image's own manifest stays as it is"
