"""Checks of the agent's doctor. Lost if these fail: an administrator isn't told why a machine can't receive."""

from __future__ import annotations

import pytest

from receiver.doctor import receiver_doctor
from receiver.doctor.network_checks import check_daemon


def test_the_doctor_names_the_packages_missing_for_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = [("growing XFS", True, "xfsprogs"), ("growing NTFS", False, "ntfs-3g")]
    monkeypatch.setattr(receiver_doctor, "fit_tools", lambda: tools)
    possible, missing = receiver_doctor._check_fit_tools()
    assert (possible.status, possible.detail) == ("ok", "growing XFS")
    assert (missing.status, missing.fix) == ("warn", "apt install ntfs-3g")
    assert "growing NTFS" in missing.detail


@pytest.mark.trio
async def test_the_doctor_reports_a_daemon_that_does_not_answer() -> None:
    [silent] = await check_daemon("http://127.0.0.1:1", "")
    assert (silent.status, silent.check) == ("fail", "daemon http://127.0.0.1:1")
    [wrong] = await check_daemon("nonsense", "")
    assert (wrong.status, "http://" in wrong.fix) == ("fail", True)
