"""The key that a room trusts: made once, private, never replaced by accident, with or without passphrase."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from protocol.errors import ConfigurationError
from protocol.trust.minisign import PublicKey
from protocol.trust.secret_key import ScryptLimits
from sender.identity import signing_keys
from sender.identity.keygen_command import keygen
from sender.identity.signing_keys import (
    create_signing_key,
    default_key_path,
    ensure_signing_key,
    load_signing_key,
    public_key_path,
)
from tests.support.signing import SIGNER


def never_asked(path: str) -> str:
    raise AssertionError(f"{path} has no passphrase")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive keys in a millisecond instead of three seconds."""
    monkeypatch.setattr("protocol.trust.secret_key.DEFAULT_LIMITS", ScryptLimits(32768, 1 << 20))


def test_the_first_use_makes_a_private_key() -> None:
    key, made = ensure_signing_key(None, never_asked)
    path = default_key_path()
    assert made
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert PublicKey.parse(public_key_path(path).read_text()) == key.public
    assert ensure_signing_key(None, never_asked) == (key, False)


def test_two_programs_at_the_first_use_get_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one sees no file, and loses the race: it must sign with the first one's key."""
    first = create_signing_key(default_key_path(), "")
    monkeypatch.setattr("os.path.lexists", lambda _path: False)
    assert ensure_signing_key(None, never_asked) == (first, False)


def test_an_existing_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "lab.key"
    create_signing_key(path, "")
    before = path.read_bytes(), public_key_path(path).read_bytes()
    with pytest.raises(ConfigurationError, match="exists"):
        create_signing_key(path, "")
    assert (path.read_bytes(), public_key_path(path).read_bytes()) == before
    with pytest.raises(ConfigurationError, match="both keys"):
        create_signing_key(tmp_path / "lab.pub", "")


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lab.key"
    create_signing_key(path, "")
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_signing_key(path, never_asked)


@pytest.mark.usefixtures("cheap")
def test_a_passphrase_is_asked_for_once_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "lab.key"
    key = create_signing_key(path, "horse")
    assert load_signing_key(path, lambda _path: "horse") == key
    with pytest.raises(ConfigurationError, match=r"lab\.key: wrong passphrase"):
        load_signing_key(path, lambda _path: "cow")


def test_missing_and_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="diskcast keygen"):
        load_signing_key(tmp_path / "none.key", never_asked)
    other = tmp_path / "other.key"
    other.touch(mode=0o600)
    with pytest.raises(ConfigurationError, match=r"other\.key"):
        load_signing_key(other, never_asked)


# -- diskcast keygen --------------------------------------------------------------------------------------------


def run(*arguments: str, typed: str = "") -> Any:
    return CliRunner().invoke(keygen, list(arguments), input=typed)


def test_keygen_prints_where_the_keys_are() -> None:
    result = run("--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.output)
    assert record["secret_key_path"] == str(default_key_path())
    assert record["encrypted"] is False
    assert PublicKey.parse(record["public_key"]).id_text == record["key_id"]
    text = run("-o", str(default_key_path().with_name("second.key")), "--no-passphrase").output
    assert "back it up" in text
    assert "--trust-key RW" in text


@pytest.mark.usefixtures("cheap")
def test_keygen_takes_the_passphrase_from_a_file_or_stdin(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text("horse\n")
    for name, source, typed in (("a", str(file), ""), ("b", "-", "horse\n")):
        path = tmp_path / f"{name}.key"
        result = run("-o", str(path), "--passphrase-file", source, "--json", typed=typed)
        assert result.exit_code == 0, result.output
        assert json.loads(result.output)["encrypted"] is True
        assert "horse" not in result.output
        assert load_signing_key(path, lambda _path: "horse")


def test_no_output_shows_a_secret() -> None:
    output = run().output
    secret = default_key_path().read_text().splitlines()[1]
    assert secret not in output
    assert signing_keys.default_key_path().exists()
    assert SIGNER.seed.hex() not in repr(SIGNER)
