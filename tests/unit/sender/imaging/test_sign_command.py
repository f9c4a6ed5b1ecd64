"""Signing an image file, on this machine and by way of an air-gapped one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from protocol.errors import ConfigurationError, TrustError, UnsignedImageError
from protocol.trust.minisign import parse_signature_untrusted
from protocol.trust.statement import parse_statement_untrusted
from sender.imaging.image_commands import inspect, pack, verify
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature
from sender.imaging.sign_command import sign
from tests.support.disks.disk_images import make_image
from tests.support.signing import SIGNER, STRANGER

MADE = make_image("drz", name="lab-2026")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return MADE.write(tmp_path / "lab.dci", signer=None)


def run(command: Any, *arguments: str | Path) -> str:
    result = CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def signature_of(path: Path) -> ImageSignature:
    with ImageFile.open(path) as image:
        return ImageSignature.of(image.header)


def test_the_users_key_signs_with_defaults(path: Path) -> None:
    text = run(sign, path)
    found = signature_of(path)
    assert found.signer == SIGNER.public
    assert found.statement is not None
    assert found.statement.name == "lab-2026"
    assert found.statement.version >= 202611010000
    assert found.statement.tags == ()
    assert f"version {found.statement.version}" in text


def test_signing_again_keeps_what_isnt_given_and_raises_the_version(path: Path) -> None:
    run(sign, path, "--image-version", "7", "--tag", "uefi", "--tag", "bios", "--not-after", "2030-01-01")
    run(sign, path, "--name", "lab-2027")
    statement = signature_of(path).statement
    assert statement is not None
    assert statement.version > 7
    assert (statement.name, statement.tags) == ("lab-2027", ("bios", "uefi"))
    assert statement.not_after is not None
    run(sign, path, "--image-version", "9", "--not-after", "never")
    statement = signature_of(path).statement
    assert statement is not None
    assert (statement.version, statement.not_after) == (9, None)


def test_an_air_gapped_signer_needs_only_the_statement(path: Path, tmp_path: Path) -> None:
    exported, public = tmp_path / "lab.statement", tmp_path / "lab.pub"
    key = tmp_path / "far.key"
    key.touch(mode=0o600)
    key.write_text(STRANGER.file_text())
    public.write_text(STRANGER.public.file_text())
    run(sign, path, "--image-version", "7", "--export", exported)
    assert signature_of(path).statement is None
    assert len(exported.read_bytes()) <= 1024
    assert parse_statement_untrusted(exported.read_bytes()).version == 7
    run(sign, exported, "--key", key)
    assert parse_signature_untrusted((tmp_path / "lab.statement.minisig").read_text()).key_id == b"stranger"
    run(sign, path, "--import", exported, "--public-key", public)
    assert signature_of(path).signer == STRANGER.public
    assert json.loads(run(inspect, path, "--json"))["signature"]["version"] == 7


def test_a_statement_about_another_image_isnt_imported(path: Path, tmp_path: Path) -> None:
    other, exported = (
        make_image("rr").write(tmp_path / "other.dci", signer=None),
        tmp_path / "other.statement",
    )
    run(sign, other, "--export", exported)
    run(sign, exported)
    before = path.read_bytes()
    with pytest.raises(TrustError, match="about the image"):
        run(sign, path, "--import", exported, "--public-key", SIGNER.public.text)
    with pytest.raises(UnsignedImageError, match="another key"):
        run(sign, path, "--import", exported, "--public-key", STRANGER.public.text)
    exported.write_bytes(exported.read_bytes().replace(b"made", b"Made"))
    with pytest.raises(UnsignedImageError, match="altered"):
        run(sign, path, "--import", exported, "--public-key", SIGNER.public.text)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--export", "a", "--import", "b"), "two steps"),
        (("--import", "missing"), "--public-key"),
        (("--import", "missing", "--public-key", SIGNER.public.text), "can't read"),
        (("--tag", "Übung"), "isn't a tag"),
        (("--name", "Übung"), "printable ASCII"),
        (("--not-after", "soon"), "isn't a time"),
        (("--key", "missing.key"), "no signing key"),
    ],
)
def test_mistakes_change_nothing(path: Path, options: tuple[str, ...], message: str) -> None:
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=message):
        run(sign, path, *options)
    assert path.read_bytes() == before


def test_verify_refuses_an_invalid_signature(path: Path) -> None:
    assert "unsigned" in run(verify, path)
    run(sign, path)
    assert SIGNER.public.id_text in run(verify, path)
    with ImageFile.open(path) as image:
        page = image.header.with_signature(image.header.signed, STRANGER.public).to_page()  # type: ignore[arg-type]
    with path.open("r+b") as file:
        file.write(page)
    assert "invalid" in run(inspect, path)
    with pytest.raises(UnsignedImageError, match="every block is correct"):
        run(verify, path)


def test_packing_with_a_version_gives_the_same_file(tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(MADE.raw)
    paths = [tmp_path / "a.dci", tmp_path / "b.dci"]
    for path in paths:
        run(pack, source, "-o", path, "--image-version", "7", "--tag", "uefi")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_mode & 0o777 == 0o640
    run(pack, source, "-o", paths[0], "--no-sign")
    assert signature_of(paths[0]).statement is None


def test_a_wrong_tag_is_noticed_before_packing(tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(MADE.raw)
    with pytest.raises(ConfigurationError, match="isn't a tag"):
        run(pack, source, "-o", tmp_path / "a.dci", "--tag", "UEFI")
    assert not (tmp_path / "a.dci").exists()
