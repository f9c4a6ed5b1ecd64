"""The spool: it has exactly what was written, takes no more space than necessary, and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import MIB
from protocol.errors import ConfigurationError, ForeignImageError, StorageError
from sender.imaging.foreign.spool import HOLE_BYTES, Spool


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, 64 * MIB)


def content(spool: Spool) -> bytes:
    return os.pread(spool.fd, spool.raw_bytes + 1, 0)


pieces = st.lists(
    st.tuples(st.booleans(), st.integers(1, 3 * HOLE_BYTES)).map(lambda drawn: bytes([drawn[0]]) * drawn[1]),
    max_size=8,
)


@given(pieces)
def test_a_spool_reads_as_written(written: list[bytes]) -> None:
    with Spool(Path("/tmp"), 64 * MIB) as spool:
        offset = 0
        for piece in written:
            spool.write_at(offset, piece)
            offset += len(piece)
        assert content(spool) == b"".join(written)


def test_zeros_take_no_space(spool: Spool, tmp_path: Path) -> None:
    with spool:
        spool.write_at(0, b"x" + bytes(32 * MIB) + b"x")
        assert os.fstat(spool.fd).st_blocks * 512 <= 4 * HOLE_BYTES
        assert not list(tmp_path.iterdir()), "the spool has no name"


def test_a_disk_above_the_limit_is_refused(spool: Spool) -> None:
    with spool, pytest.raises(ForeignImageError, match="--max-size"):
        spool.write_at(64 * MIB, b"x")


def test_missing_space_is_named_in_bytes(spool: Spool) -> None:
    with spool, pytest.raises(StorageError, match=r"takes 1048576\.00 TiB"):
        spool.require_space(1 << 60)


def test_a_full_filesystem_ends_the_import_before_the_reserve_is_gone(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decompression bomb would otherwise fill the disk of the daemon's database."""
    monkeypatch.setattr("sender.imaging.foreign.spool.RESERVE_BYTES", 1 << 60)
    with spool:
        spool.write_at(0, b"x" * MIB)
        with pytest.raises(StorageError, match="reserve"):
            spool.write_at(MIB, b"x" * 60 * MIB)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing"):
        Spool(tmp_path / "missing", MIB)
