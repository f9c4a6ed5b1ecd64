"""The trusted keys of a machine: what an operator adds, revokes or removes is what its agent reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from protocol.errors import ConfigurationError
from protocol.program.trusted_keys_directory import load_trusted_keys
from protocol.trust.trusted_keys import TRUSTED_KEYS_MAX, TrustedKey
from sender.identity.trust_command import trust
from tests.support.signing import NOW, SIGNER, STRANGER


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "trusted-keys.d"


def run(directory: Path, *arguments: str) -> Any:
    result = CliRunner().invoke(trust, [*arguments, "--directory", str(directory)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_an_added_key_is_trusted_until_it_is_removed(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "lab.pub"
    file.write_text(SIGNER.public.file_text())
    assert "agents accept no image" in run(directory, "list")
    run(directory, "add", str(file))
    run(directory, "add", STRANGER.public.text, "--name", "other", "--not-after", "2027-01-31")
    keys = {key.name: key for key in load_trusted_keys(directory)}
    assert keys["lab"] == TrustedKey(SIGNER.public, "lab")
    assert keys["other"].not_after is not None
    assert keys["other"].not_after.isoformat() == "2027-01-31T00:00:00+00:00"
    assert (directory / "lab.pub").stat().st_mode & 0o777 == 0o644
    run(directory, "remove", "other")
    assert [entry.name for entry in directory.iterdir()] == ["lab.pub"]


def test_a_revoked_key_stays_with_its_reason(directory: Path) -> None:
    run(directory, "add", SIGNER.public.text, "--name", "lab")
    run(directory, "revoke", "lab", "--reason", "laptop stolen")
    (key,) = load_trusted_keys(directory)
    assert key.revoked == "laptop stolen"
    assert "revoked: laptop stolen" in key.fault(NOW)
    (record,) = [json.loads(line) for line in run(directory, "list", "--json").splitlines()]
    assert (record["name"], record["revoked"], record["key_id"]) == (
        "lab",
        "laptop stolen",
        SIGNER.public.id_text,
    )


def test_show_prints_what_options_and_kernel_command_lines_take(directory: Path) -> None:
    run(directory, "add", SIGNER.public.text, "--name", "lab")
    text = run(directory, "show", "lab")
    assert f"--trust-key {SIGNER.public.text}" in text
    assert f"diskcast.trust={SIGNER.public.text}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "missing.pub"), "can't read the public key"),
        (("add", "RWabc"), "public key of minisign"),
        (("add", SIGNER.public.text, "--name", "../lab"), "can't be the name"),
        (("add", SIGNER.public.text, "--name", "lab"), "exists"),
        (("add", SIGNER.public.text, "--name", "new", "--not-after", "soon"), "isn't a time"),
        (("show", "other"), "it has lab"),
        (("revoke", "other"), "there is no key"),
        (("revoke", "lab", "--reason", "a\nb"), "one printable line"),
        (("remove", "other"), "there is no key"),
    ],
)
def test_mistakes_change_nothing(directory: Path, arguments: tuple[str, ...], message: str) -> None:
    run(directory, "add", SIGNER.public.text, "--name", "lab")
    before = (directory / "lab.pub").read_bytes()
    with pytest.raises(ConfigurationError, match=message):
        run(directory, *arguments)
    assert [entry.name for entry in directory.iterdir()] == ["lab.pub"]
    assert (directory / "lab.pub").read_bytes() == before


def test_a_key_file_that_others_may_change_is_refused(directory: Path) -> None:
    run(directory, "add", SIGNER.public.text, "--name", "lab")
    (directory / "lab.pub").chmod(0o666)
    with pytest.raises(ConfigurationError, match="chmod go-w"):
        load_trusted_keys(directory)


def test_a_file_that_is_no_key_isnt_skipped(directory: Path) -> None:
    """It may be the one that revokes a key."""
    directory.mkdir()
    (directory / "lab.pub").write_text("revoked\n")
    with pytest.raises(ConfigurationError, match="lab"):
        load_trusted_keys(directory)
    (directory / "lab.pub").unlink()
    (directory / "notes.txt").write_text("not a key")
    assert load_trusted_keys(directory) == []


def test_too_many_key_files_are_refused(directory: Path) -> None:
    directory.mkdir()
    for number in range(TRUSTED_KEYS_MAX + 1):
        (directory / f"{number}.pub").touch()
    with pytest.raises(ConfigurationError, match="remove old ones"):
        load_trusted_keys(directory)
