"""Two readers of one statement must never see two different things, and an unknown promise must not be ignored."""

from __future__ import annotations

import dataclasses
import datetime

import pytest

from protocol.errors import ConfigurationError, TrustError, UnsignedImageError
from protocol.trust.statement import (
    STATEMENT_BYTES_MAX,
    ImageStatement,
    PatchPolicy,
    SignedStatement,
    parse_statement_untrusted,
)
from tests.support.signing import signed

IMAGE_ID = bytes(range(32))
STATEMENT = ImageStatement(IMAGE_ID, "lab-2026", 7)
TEXT = f"""diskcast-image-v1
image-id: {IMAGE_ID.hex()}
name: lab-2026
version: 7
tags: none
not-after: never
patches: none
"""


def test_the_text_is_the_documented_one() -> None:
    assert STATEMENT.encode().decode() == TEXT


def test_every_field_survives() -> None:
    full = ImageStatement(
        IMAGE_ID,
        "Lab 2026 / windows",
        2**64 - 1,
        ("bios", "lab-pc", "uefi.v2"),
        datetime.datetime(2027, 12, 31, 23, 59, 59, tzinfo=datetime.UTC),
        PatchPolicy.SIGNED,
        (("x-build", "jenkins 812"), ("x-ticket", "LAB-7")),
    )
    assert parse_statement_untrusted(full.encode()) == full
    assert parse_statement_untrusted(STATEMENT.encode()) == STATEMENT


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version: 7", "version: 07"),
        ("version: 7", "version: +7"),
        ("version: 7", "version: 7_0"),
        ("version: 7", "version: -7"),
        ("version: 7", f"version: {2**64}"),
        ("version: 7", "version: \u0667"),
        ("version: 7", "version:7"),
        ("version: 7", "version: 7 "),
        ("version: 7\n", ""),
        ("version: 7\n", "version: 7\nversion: 8\n"),
        ("name: lab-2026\nversion: 7\n", "version: 7\nname: lab-2026\n"),
        (IMAGE_ID.hex(), IMAGE_ID.hex().upper()),
        (IMAGE_ID.hex(), IMAGE_ID.hex()[:-2]),
        (IMAGE_ID.hex(), IMAGE_ID.hex()[:-2] + " 1"),
        ("name: lab-2026", "name: "),
        ("name: lab-2026", "name:  lab"),
        ("name: lab-2026", "name: lab\t"),
        ("name: lab-2026", "name: " + "n" * 65),
        ("tags: none", "tags: "),
        ("tags: none", "tags: uefi,bios"),
        ("tags: none", "tags: uefi,uefi"),
        ("tags: none", "tags: uefi, v2"),
        ("tags: none", "tags: UEFI"),
        ("tags: none", "tags: none,uefi"),
        ("not-after: never", "not-after: 2027-12-31"),
        ("not-after: never", "not-after: 2027-12-31T23:59:60Z"),
        ("not-after: never", "not-after: 2027-1-1T00:00:00Z"),
        ("not-after: never", "not-after: Never"),
        ("patches: none", "patches: all"),
        ("patches: none\n", "patches: none"),
        ("patches: none\n", "patches: none\n\n"),
        ("patches: none\n", "patches: none\nroom: 7\n"),
        ("patches: none\n", "patches: none\nx-b: 1\nx-a: 1\n"),
        ("patches: none\n", "patches: none\nx-a: 1\nx-a: 2\n"),
        ("patches: none\n", "patches: none\nx-A: 1\n"),
        ("patches: none\n", "patches: none\nx-a\n"),
        ("diskcast-image-v1", "diskcast-image-v2"),
        ("\n", "\r\n"),
    ],
)
def test_any_other_encoding_is_refused(old: str, new: str) -> None:
    assert old in TEXT
    with pytest.raises(TrustError):
        parse_statement_untrusted(TEXT.replace(old, new).encode())


def test_unknown_fields_name_the_fix() -> None:
    with pytest.raises(TrustError, match="upgrade diskcast"):
        parse_statement_untrusted((TEXT + "room: 7\n").encode())
    with pytest.raises(TrustError, match="upgrade diskcast"):
        parse_statement_untrusted(TEXT.replace("-v1", "-v2").encode())


def test_long_statements_are_refused() -> None:
    extensions = tuple((f"x-{number:02}", "v" * 64) for number in range(20))
    with pytest.raises(ConfigurationError, match="1024 bytes"):
        dataclasses.replace(STATEMENT, extensions=extensions).encode()
    with pytest.raises(TrustError, match="1024 bytes"):
        parse_statement_untrusted(TEXT.encode() + b"x-a: 1\n" * STATEMENT_BYTES_MAX)


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "Übung"},
        {"version": -1},
        {"tags": ("none",)},
        {"tags": tuple(f"tag-{number:02}" for number in range(17))},
        {"image_id": b"short"},
        {"extensions": (("y-a", "1"),)},
        {"extensions": (("x-a", "1\npatches: daemon"),)},
    ],
)
def test_impossible_statements_are_never_signed(change: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        dataclasses.replace(STATEMENT, **change).encode()  # type: ignore[arg-type]


def test_statement_and_signature_survive_the_header() -> None:
    both = signed(STATEMENT)
    assert SignedStatement.from_bytes_untrusted(both.to_bytes()) == both
    for damaged in (b"", b"\1", b"\xff\xff" + both.to_bytes()[2:], both.to_bytes() + b"\xff"):
        with pytest.raises(UnsignedImageError, match="damaged"):
            SignedStatement.from_bytes_untrusted(damaged)
