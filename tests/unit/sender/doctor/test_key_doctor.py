"""The sender's doctor and its keys: a lost half or an open file is found before the day of a release."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from protocol.program.findings import Status
from sender.doctor.key_doctor import judge_keys, judge_signing_key
from sender.identity.signing_keys import create_signing_key, default_key_path, public_key_path
from tests.support.signing import NOW, TRUSTED


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def test_the_signing_key_is_judged_by_both_its_files() -> None:
    assert judge_signing_key().status is Status.OK
    create_signing_key(default_key_path(), "")
    found = judge_signing_key()
    assert found.status is Status.OK
    assert "not encrypted" in found.detail
    public_key_path(default_key_path()).unlink()
    found = judge_signing_key()
    assert found.status is Status.WARN
    assert found.fix.startswith("minisign -R")
    default_key_path().chmod(0o644)
    assert judge_signing_key().status is Status.FAIL
    default_key_path().chmod(0o600)
    default_key_path().write_text("damaged")
    assert judge_signing_key().status is Status.FAIL


def test_trusted_keys_of_the_daemons_machine_are_judged(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    assert judge_keys(NOW, directory) == []
    directory.mkdir()
    (directory / "lab.pub").write_text(dataclasses.replace(TRUSTED, not_after=NOW).file_text())
    (directory / "notes.pub").write_text("not a key")
    assert [finding.status for finding in judge_keys(NOW, directory)] == [Status.FAIL, Status.WARN]
