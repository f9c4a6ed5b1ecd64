"""The origin that a manifest records: it survives packing, and a crafted one is refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from protocol.errors import ConfigurationError, ImageDamagedError
from protocol.image.image_metadata import pack_metadata, parse_metadata_untrusted
from protocol.image.provenance import Provenance, SourceChecksums, provenance_of

ORIGIN = Provenance("qcow2", SourceChecksums.NONE, "qemu-img", "7.2.22")


@pytest.mark.parametrize(
    "origin",
    [ORIGIN, Provenance("clonezilla", SourceChecksums.VERIFIED, "diskcast", "1", "partclone 0.3.13")],
)
def test_an_origin_survives_in_the_manifest(origin: Provenance) -> None:
    packed = pack_metadata({"provenance": origin.to_metadata()})
    assert provenance_of(parse_metadata_untrusted(packed)) == origin


def test_a_raw_disk_has_no_origin() -> None:
    assert provenance_of(parse_metadata_untrusted(pack_metadata({}))) is None


def test_keys_of_a_later_version_are_ignored() -> None:
    assert provenance_of({"provenance": ORIGIN.to_metadata() | {"later": 1}}) == ORIGIN


@pytest.mark.parametrize(
    "change",
    [
        {"checksums": "perhaps"},
        {"checksums": None},
        {"format": "qcow2\x1b[2J"},
        {"tool": "x" * 129},
        {"tool_version": 7},
        {"details": b""},
    ],
)
def test_a_crafted_origin_is_refused(change: Mapping[str, object]) -> None:
    """Its text is shown on terminals and in browsers."""
    value = ORIGIN.to_metadata() | dict(change)
    with pytest.raises(ImageDamagedError, match="provenance"):
        Provenance.from_metadata_untrusted(value)
    with pytest.raises(ConfigurationError, match="provenance"):
        pack_metadata({"provenance": value})


def test_an_origin_is_shown_with_its_checksums() -> None:
    assert str(ORIGIN) == "qcow2, without checksums, read by qemu-img 7.2.22"
