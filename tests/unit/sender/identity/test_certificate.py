"""The certificate is the sender's identity: agents must recognise it after every restart and during a rotation."""

from __future__ import annotations

import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from sender.identity.certificate import (
    CERTIFICATE_FILE,
    EXPIRES_SOON,
    VALID_FOR,
    Certificate,
    ensure_certificate,
    load_certificate,
    next_certificate,
    prepare_next,
    rotate,
)
from sender.identity.directories import user_directory
from sender.identity.join_key import JOIN_KEY_FILE, ensure_join_key

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def test_it_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "diskcast"
    first = ensure_certificate(directory, "host", NOW)
    assert ensure_certificate(directory, "renamed", NOW) == first
    assert stat.S_IMODE((directory / CERTIFICATE_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [path.name for path in directory.iterdir()] == [CERTIFICATE_FILE]


def test_programs_that_start_together_agree(tmp_path: Path) -> None:
    found: list[Certificate] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        found.append(ensure_certificate(tmp_path, "host", NOW))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({certificate.pin for certificate in found}) == 1


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    ensure_certificate(tmp_path, "host", NOW)
    (tmp_path / CERTIFICATE_FILE).chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        ensure_certificate(tmp_path, "host", NOW)


def test_a_rotation_shows_the_next_pin_before_it_is_used(tmp_path: Path) -> None:
    old = ensure_certificate(tmp_path, "host", NOW)
    with pytest.raises(ConfigurationError, match="--prepare"):
        rotate(tmp_path)
    assert next_certificate(tmp_path) is None
    prepared = prepare_next(tmp_path, "host", NOW)
    assert prepare_next(tmp_path, "host", NOW).pin == prepared.pin != old.pin
    assert ensure_certificate(tmp_path, "host", NOW).pin == old.pin
    assert rotate(tmp_path).pin == prepared.pin
    assert ensure_certificate(tmp_path, "host", NOW).pin == prepared.pin
    assert next_certificate(tmp_path) is None


def test_expiry_is_noticed_a_month_ahead(tmp_path: Path) -> None:
    certificate = ensure_certificate(tmp_path, "host", NOW)
    assert certificate.not_after == NOW + VALID_FOR
    assert not certificate.expires_soon(NOW + VALID_FOR - EXPIRES_SOON - timedelta(seconds=1))
    assert certificate.expires_soon(NOW + VALID_FOR - EXPIRES_SOON)
    assert certificate.expires_soon(NOW + VALID_FOR + timedelta(days=1))


def test_a_sites_own_certificate_is_used(tmp_path: Path) -> None:
    made = ensure_certificate(tmp_path / "pki", "host", NOW)
    loaded = load_certificate(made.certificate_file, made.key_file)
    assert loaded == made
    loaded.server_context()
    other = ensure_certificate(tmp_path / "other", "host", NOW)
    with pytest.raises(ConfigurationError, match="with the key"):
        load_certificate(made.certificate_file, other.key_file).server_context()
    with pytest.raises(ConfigurationError, match="can't read"):
        load_certificate(tmp_path / "missing.pem", made.key_file)


def test_a_damaged_certificate_is_named(tmp_path: Path) -> None:
    path = tmp_path / CERTIFICATE_FILE
    path.write_bytes(b"nonsense")
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=CERTIFICATE_FILE):
        ensure_certificate(tmp_path, "host", NOW)


def test_the_join_key_survives_a_restart(tmp_path: Path) -> None:
    key = ensure_join_key(tmp_path)
    assert len(key) == 32
    assert ensure_join_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / JOIN_KEY_FILE).stat().st_mode) == 0o600
    (tmp_path / JOIN_KEY_FILE).write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="isn't a join key"):
        ensure_join_key(tmp_path)


def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(ConfigurationError, match="can't use"):
        ensure_certificate(blocker / "diskcast", "host", NOW)


def test_users_keep_their_keys_where_the_xdg_standard_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_directory() == tmp_path / "diskcast"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_directory() == tmp_path / "home" / ".config" / "diskcast"
