"""The agent's doctor must say before the cast that a machine would refuse its image, and how to fix that."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ConfigurationError
from protocol.program.findings import Finding, Status
from receiver.doctor.trust_checks import check_trust
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.kernel_command_line import KernelTrust
from receiver.trust.rollback_floors import FLOORS_FILE
from tests.support.signing import NOW, TRUSTED

DAYS = datetime.timedelta(days=1)


def checked(
    tmp_path: Path, now: datetime.datetime = NOW, *, in_service: bool = True, **changes: Any
) -> list[Finding]:
    defaults: dict[str, Any] = {"directory": tmp_path / "keys", "kernel": KernelTrust}
    return check_trust(TrustOptions(**{**defaults, **changes}), now, in_service=in_service)


def status_of(findings: list[Finding], check: str) -> Status:
    [finding] = [finding for finding in findings if finding.check == check]
    return finding.status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"in_service": True}, Status.FAIL),
        ({"in_service": False}, Status.WARN),
        ({"allow_unsigned": True}, Status.WARN),
        ({"keys": (dataclasses.replace(TRUSTED, revoked="stolen"),)}, Status.FAIL),
    ],
)
def test_a_machine_without_a_usable_key_is_named(
    tmp_path: Path, changes: dict[str, Any], status: Status
) -> None:
    findings = checked(tmp_path, **changes)
    assert status_of(findings, "trusted keys") is status


def test_keys_are_judged_by_their_expiry(tmp_path: Path) -> None:
    for days, status in ((31, Status.OK), (30, Status.WARN), (0, Status.WARN)):
        key = dataclasses.replace(TRUSTED, not_after=NOW + days * DAYS)
        assert status_of(checked(tmp_path, keys=(key,)), "trusted key signer") is status
    assert status_of(checked(tmp_path, keys=(TRUSTED,)), "trusted key signer") is Status.OK


def test_a_clock_that_never_expires_a_key_is_named(tmp_path: Path) -> None:
    key = dataclasses.replace(TRUSTED, not_after=NOW)
    boot = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert status_of(checked(tmp_path, boot, keys=(key,)), "clock") is Status.WARN
    assert not [finding for finding in checked(tmp_path, boot, keys=(TRUSTED,)) if finding.check == "clock"]


def test_files_that_would_stop_a_cast_are_failures(tmp_path: Path) -> None:
    def broken() -> KernelTrust:
        raise ConfigurationError("diskcast.trust=RW on the kernel command line: no key")

    keys, state = tmp_path / "keys", tmp_path / "state"
    keys.mkdir()
    state.mkdir()
    (keys / "lab.pub").write_text(TRUSTED.file_text())
    (keys / "lab.pub").chmod(0o666)
    (state / FLOORS_FILE).write_text("damaged")
    findings = checked(tmp_path, kernel=broken, state_directory=state)
    for check in ("trusted key lab.pub", "kernel command line", "rollback floors", "trusted keys"):
        assert status_of(findings, check) is Status.FAIL, check
    (keys / "lab.pub").chmod(0o644)
    (state / FLOORS_FILE).write_text('{"lab": 7}')
    findings = checked(tmp_path, state_directory=state)
    assert {finding.status for finding in findings} == {Status.OK}
