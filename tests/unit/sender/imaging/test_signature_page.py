"""Signing rewrites one page of a file that took hours to pack: no moment of it may cost the image."""

from __future__ import annotations

import datetime
import fcntl
import os
import stat
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError, ImageDamagedError, ImageError
from protocol.image.image_format import PAGE_BYTES
from protocol.program.image_header import header_copy_path
from protocol.trust.statement import ImageStatement
from receiver.restore.image_source import open_image
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature, SignatureState
from sender.imaging.signature_page import write_signature
from tests.support.disks.disk_images import make_image
from tests.support.signing import SIGNER, STRANGER, signed, signed_bytes

MADE = make_image("drz")
IMAGE_ID = MADE.manifest.image_id
SECTOR_BYTES = 512


def statement(version: int) -> ImageStatement:
    return ImageStatement(IMAGE_ID, "made", version)


def signature_of(path: Path) -> ImageSignature:
    with ImageFile.open(path) as image, open_image(path) as source:
        assert source.manifest.image_id == IMAGE_ID
        return ImageSignature.of(image.header)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return MADE.write(tmp_path / "made.dci")


def test_a_new_signature_replaces_the_old_one_and_nothing_else(path: Path) -> None:
    before = path.read_bytes()
    assert signature_of(path).statement == statement(1)
    write_signature(path, signed(statement(2)), SIGNER.public)
    assert signature_of(path).statement == statement(2)
    assert path.read_bytes()[PAGE_BYTES:] == before[PAGE_BYTES:]
    assert [entry.name for entry in path.parent.iterdir()] == ["made.dci"]


def test_unsigned_images_are_signed(tmp_path: Path) -> None:
    path = MADE.write(tmp_path / "made.dci", signer=None)
    assert signature_of(path).state is SignatureState.UNSIGNED
    write_signature(path, signed(statement(1)), SIGNER.public)
    assert signature_of(path).state is SignatureState.SIGNED


@pytest.mark.parametrize("sectors", range(1, PAGE_BYTES // SECTOR_BYTES))
@pytest.mark.parametrize("end_first", [False, True])
def test_a_power_cut_within_the_page_leaves_a_valid_signature(
    path: Path, sectors: int, end_first: bool
) -> None:
    """A disk writes whole sectors, in any order; the image must open with the new signature whichever were written."""
    old = path.read_bytes()[:PAGE_BYTES]
    new = cut_before_the_page(path, 2)
    torn = bytearray(old)
    part = (
        slice(PAGE_BYTES - sectors * SECTOR_BYTES, None) if end_first else slice(None, sectors * SECTOR_BYTES)
    )
    torn[part] = new[part]
    put_page(path, bytes(torn))
    found = signature_of(path).statement
    assert found == statement(1 if bytes(torn) == old else 2)
    write_signature(path, signed(statement(3)), SIGNER.public)
    assert signature_of(path).statement == statement(3)
    assert path.read_bytes()[:PAGE_BYTES] not in (old, new)
    assert [entry.name for entry in path.parent.iterdir()] == ["made.dci"]


def test_a_power_cut_around_the_page_leaves_the_old_or_the_new_signature(path: Path) -> None:
    new = cut_before_the_page(path, 2)
    assert signature_of(path).statement == statement(1)  # the page is untouched
    put_page(path, new)
    assert signature_of(path).statement == statement(2)  # the copy is still there
    header_copy_path(path).write_bytes(new[:1000])
    assert signature_of(path).statement == statement(2)


def cut_before_the_page(path: Path, version: int) -> bytes:
    """Leave the disk as a power cut does after the copy is durable, and return the copy."""
    copy = header_copy_path(path)
    with ImageFile.open(path) as image:
        page = image.header.with_signature(signed(statement(version)), SIGNER.public).to_page()
    copy.write_bytes(page)
    return page


def put_page(path: Path, page: bytes) -> None:
    with path.open("r+b") as file:
        file.write(page)


def test_the_copy_is_durable_before_the_page_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of system calls is the promise: copy, sync, name, sync, page, sync, only then remove the copy."""
    calls: list[str] = []
    image_inode = path.stat().st_ino

    def record(name: str) -> None:
        original = getattr(os, name)

        def call(fd: int, *arguments: object) -> object:
            status = os.fstat(fd)
            kind = (
                "directory"
                if stat.S_ISDIR(status.st_mode)
                else "page"
                if status.st_ino == image_inode
                else "copy"
            )
            calls.append(f"{name} {kind}, copy {'there' if header_copy_path(path).exists() else 'missing'}")
            return original(fd, *arguments)

        monkeypatch.setattr(os, name, call)

    record("pwrite")
    record("fsync")
    write_signature(path, signed(statement(2)), SIGNER.public)
    assert calls == [
        "pwrite copy, copy missing",
        "fsync copy, copy missing",
        "fsync directory, copy there",
        "pwrite page, copy there",
        "fsync page, copy there",
        "fsync directory, copy missing",
    ]


def test_a_copy_of_another_image_is_not_believed(path: Path) -> None:
    """A copy that an earlier image of this name left behind must not give this one its name or id."""
    other = make_image("rrr", seed=9).write(path.with_name("other.dci"))
    header_copy_path(path).write_bytes(other.read_bytes()[:PAGE_BYTES])
    page = bytearray(path.read_bytes()[:PAGE_BYTES])
    page[2000] ^= 1
    put_page(path, bytes(page))
    with pytest.raises(ImageError):
        ImageFile.open(path)
    header_copy_path(path).unlink()
    with pytest.raises(ImageDamagedError, match="header was altered"):
        ImageFile.open(path)


def test_a_linked_image_is_signed_where_it_is(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    link = folder / "lab.dci"
    link.symlink_to(path)
    write_signature(link, signed(statement(2)), SIGNER.public)
    assert link.is_symlink()
    assert signature_of(path).statement == statement(2)
    assert [entry.name for entry in folder.iterdir()] == ["lab.dci"]


def test_what_is_no_image_isnt_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not an image" * 1000)
    with pytest.raises(ImageError, match="notes"):
        write_signature(path, signed(statement(1)), SIGNER.public)
    assert path.read_text() == "not an image" * 1000
    with pytest.raises(ImageError, match="can't open"):
        write_signature(tmp_path / "missing.dci", signed(statement(1)), SIGNER.public)


def test_two_signers_at_once_dont_mix(path: Path) -> None:
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="another process is signing"):
            write_signature(path, signed(statement(2)), SIGNER.public)


@pytest.mark.parametrize(
    ("alter", "problem"),
    [
        (lambda header: header.with_signature(signed(statement(1), STRANGER), SIGNER.public), "altered"),
        (
            lambda header: header.with_signature(signed(ImageStatement(bytes(32), "made", 1)), SIGNER.public),
            "about the image 0000",
        ),
        (lambda header: header.with_signature(signed_bytes(b"hello"), SIGNER.public), "statement"),
    ],
)
def test_invalid_signatures_name_their_fault(path: Path, alter: object, problem: str) -> None:
    with ImageFile.open(path) as image:
        found = ImageSignature.of(alter(image.header))  # type: ignore[operator]
    assert found.state is SignatureState.INVALID
    assert found.signed is None
    assert problem in found.problem
    assert problem in "\n".join(found.lines())


def test_an_expired_statement_is_still_the_signers(path: Path) -> None:
    expired = ImageStatement(
        IMAGE_ID, "made", 1, not_after=datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    )
    write_signature(path, signed(expired), SIGNER.public)
    found = signature_of(path)
    assert found.state is SignatureState.SIGNED
    assert "2001-01-01" in "\n".join(found.lines())


def test_the_header_must_name_the_key_that_signed(path: Path) -> None:
    with ImageFile.open(path) as image:
        header = image.header.with_signature(signed(statement(1)), STRANGER.public)
    assert ImageSignature.of(header).state is SignatureState.INVALID
