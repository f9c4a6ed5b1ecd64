"""An administrator learns of an expiring or unusable certificate before the browsers and agents of a site do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protocol.program.findings import Status
from sender.config.sections import ServerSection
from sender.doctor.certificate_doctor import judge_daemon_certificate, judge_sender_certificate
from sender.identity.certificate import CERTIFICATE_FILE, VALID_FOR, ensure_certificate, prepare_next
from sender.identity.directories import PROGRAM_DIRECTORY


def made_ago(directory: Path, days: int) -> str:
    """Make a certificate as it would have been made so many days ago; return its pin."""
    return ensure_certificate(directory, "caster", datetime.now(UTC) - timedelta(days=days)).pin


def server_in(directory: Path, **keys: Path) -> ServerSection:
    return ServerSection(state_directory=directory, **keys)


def test_a_certificate_is_made_by_the_daemon_not_by_the_doctor(tmp_path: Path) -> None:
    [finding] = judge_daemon_certificate(server_in(tmp_path))
    assert (finding.status, "first start" in finding.detail) == (Status.OK, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("age_days", "status", "word"),
    [
        (0, Status.OK, "expires 2"),
        (VALID_FOR.days - 29, Status.WARN, "expires soon"),
        (VALID_FOR.days + 1, Status.WARN, "expired"),
    ],
)
def test_expiry_is_reported_with_the_command(
    tmp_path: Path, age_days: int, status: Status, word: str
) -> None:
    pin = made_ago(tmp_path, age_days)
    [finding] = judge_daemon_certificate(server_in(tmp_path))
    assert finding.status == status
    assert word in finding.detail
    assert pin in finding.detail
    assert status is Status.OK or "rotate --server --prepare" in finding.fix


def test_the_next_pin_is_shown(tmp_path: Path) -> None:
    made_ago(tmp_path, 0)
    prepared = prepare_next(tmp_path, "caster", datetime.now(UTC))
    [_, following] = judge_daemon_certificate(server_in(tmp_path))
    assert prepared.pin in following.detail


def test_an_unusable_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nonsense")
    key = ensure_certificate(tmp_path / "other", "caster", datetime.now(UTC)).key_file
    [finding] = judge_daemon_certificate(
        server_in(tmp_path, certificate=tmp_path / "cert.pem", certificate_key=key)
    )
    assert finding.status == Status.FAIL
    assert "cert.pem" in finding.detail


def test_the_senders_certificate_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert "first cast" in judge_sender_certificate().detail
    pin = made_ago(tmp_path / PROGRAM_DIRECTORY, VALID_FOR.days)
    expiring = judge_sender_certificate()
    assert (expiring.status, pin in expiring.detail) == (Status.WARN, True)
    (tmp_path / PROGRAM_DIRECTORY / CERTIFICATE_FILE).chmod(0o644)
    assert judge_sender_certificate().status == Status.FAIL
