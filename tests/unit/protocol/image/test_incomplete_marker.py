"""The marker of an incomplete target: recognised by diskcast, by no firmware."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.image.incomplete_marker import MARKER_BYTES, Marker, build_marker, parse_marker_untrusted

MARKER = Marker(bytes(range(32)), "Übungsraum 3", 500 << 30)


def test_a_marked_target_is_recognised() -> None:
    assert parse_marker_untrusted(build_marker(MARKER)) == MARKER
    assert parse_marker_untrusted(build_marker(MARKER) + bytes(4096)) == MARKER


def test_firmware_does_not_boot_it() -> None:
    sector = build_marker(MARKER)
    assert len(sector) == MARKER_BYTES
    assert sector[510:512] != b"\x55\xaa"


@given(st.binary(max_size=600), st.integers(0, 200))
def test_any_other_first_sector_is_none(noise: bytes, kept_bytes: int) -> None:
    sector = build_marker(MARKER)[:kept_bytes] + noise
    marker = parse_marker_untrusted(sector)
    assert marker is None or marker.image_name.isprintable() or marker.image_name == ""
