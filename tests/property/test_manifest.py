"""Manifests come from files and from the network: each must be read as it was written, and other bytes may raise only
documented errors.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import HASH_BYTES, MIB
from protocol.errors import ImageError
from protocol.image.image_format import PAGE_BYTES, build_header, parse_header_untrusted
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import MANIFEST_MAGIC, block_count_of, build_manifest

names = st.text(min_size=1, max_size=16).filter(str.isprintable)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    """Return a valid manifest of up to 40 blocks."""
    block_bytes = draw(st.sampled_from([64 * 1024, 256 * 1024, 4 * MIB]))
    raw_bytes = draw(st.integers(1, 40 * block_bytes))
    n = block_count_of(raw_bytes, block_bytes)
    lengths = [min(block_bytes, raw_bytes - block * block_bytes) for block in range(n)]
    kinds = draw(st.lists(st.sampled_from(BlockKind), min_size=n, max_size=n))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    stored = []
    for block, length in enumerate(lengths):
        if kinds[block] == BlockKind.DATA and length == 1:
            kinds[block] = BlockKind.RAW  # one byte can't be stored in less
        stored.append(
            {BlockKind.DATA: int(rng.integers(1, max(2, length))), BlockKind.RAW: length}.get(kinds[block], 0)
        )
    hashes = rng.integers(0, 256, (2, n, HASH_BYTES)).astype(np.uint8)
    metadata = draw(st.dictionaries(st.text(max_size=8), plain, max_size=3))
    return build_manifest(
        draw(names),
        raw_bytes,
        block_bytes,
        np.array(kinds, np.uint8),
        np.array(stored, np.uint32),
        hashes[0],
        hashes[1],
        metadata,
    )


@given(manifests())
def test_building_from_what_was_parsed_gives_the_same_bytes(data: bytes) -> None:
    m = Manifest.parse_untrusted(data)
    again = build_manifest(
        m.name, m.raw_bytes, m.block_bytes, m.kind, m.stored_bytes, m.stored_hash, m.raw_hash, m.metadata
    )
    assert again == data


@given(manifests())
def test_sums_agree(data: bytes) -> None:
    m = Manifest.parse_untrusted(data)
    summary = m.summary()
    assert sum(part.raw_bytes for part in summary.values()) == m.raw_bytes
    assert sum(part.block_count for part in summary.values()) == m.block_count
    assert sum(part.stored_bytes for part in summary.values()) == m.payload_bytes == m.offsets[-1]
    assert sum(m.raw_length(block) for block in range(m.block_count)) == m.raw_bytes
    symbols = m.source_symbols(8928 * 4)
    assert np.array_equal(symbols > 0, m.stored_mask)


@given(manifests(), st.data())
def test_an_altered_byte_is_refused_or_changes_the_id(data: bytes, draw: st.DataObject) -> None:
    position = draw.draw(st.integers(0, len(data) - 1))
    altered = bytearray(data)
    altered[position] ^= draw.draw(st.integers(1, 255))
    try:
        image_id = Manifest.parse_untrusted(altered).image_id
    except ImageError:
        return
    assert image_id != Manifest.parse_untrusted(data).image_id


@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_raise_only_image_errors(data: bytes, signed: bool) -> None:
    for parse in (Manifest.parse_untrusted, parse_header_untrusted):
        try:
            parse(MANIFEST_MAGIC + b"\1\0\0\0" + data if signed else data)
        except ImageError:
            continue
        raise AssertionError("400 bytes can't be a manifest or a header")


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 46), st.binary(min_size=32, max_size=32))
def test_header_round_trip(manifest_bytes: int, payload_bytes: int, image_id: bytes) -> None:
    page = build_header(
        manifest_bytes=manifest_bytes, payload_bytes=payload_bytes, image_id=image_id
    ).to_page()
    assert len(page) == PAGE_BYTES
    header = parse_header_untrusted(page)
    assert (header.manifest_bytes, header.payload_bytes) == (manifest_bytes, payload_bytes)
    assert header.image_id == image_id
    assert header.payload_offset % PAGE_BYTES == 0
    assert 0 <= header.payload_offset - header.manifest_offset - manifest_bytes < PAGE_BYTES
