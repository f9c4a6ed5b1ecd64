"""Checks of the agent's doctor. Lost if these fail: an administrator isn't told why a machine can't receive."""

from __future__ import annotations

import subprocess
import sys

import pytest

from protocol.program.peer_trust import PeerTrust
from receiver.doctor import receiver_doctor
from receiver.doctor.network_checks import check_daemon
from tests.support.network.lab import REPOSITORY
from tests.support.network.tls_peer import shared_certificate, tls_peer


def test_the_doctor_names_the_packages_missing_for_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = [("growing XFS", True, "xfsprogs"), ("growing NTFS", False, "ntfs-3g")]
    monkeypatch.setattr(receiver_doctor, "fit_tools", lambda: tools)
    possible, missing = receiver_doctor._check_fit_tools()
    assert (possible.status, possible.detail) == ("ok", "growing XFS")
    assert (missing.status, missing.fix) == ("warn", "apt install ntfs-3g")
    assert "growing NTFS" in missing.detail


@pytest.mark.needs_root
def test_the_doctor_tries_the_confinement_of_filesystem_tools() -> None:
    assert receiver_doctor.check_confinement().status == "ok"
    code = "from receiver.doctor.receiver_doctor import check_confinement as check; print(*check().to_json().values())"
    limited = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", sys.executable, "-c", code]
    shown = subprocess.run(limited, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    assert "warn" in shown
    assert "private namespaces: Operation not permitted" in shown
    assert "fit.conf" in shown


@pytest.mark.trio
async def test_the_doctor_reports_a_daemon_that_does_not_answer() -> None:
    [silent] = await check_daemon("http://127.0.0.1:1", "", PeerTrust())
    assert (silent.status, silent.check) == ("fail", "daemon http://127.0.0.1:1")
    for url in ("nonsense", "https://192.0.2.1:7400"):
        [wrong] = await check_daemon(url, "", PeerTrust())
        assert (wrong.status, "https://" in wrong.fix, "--pin" in wrong.fix) == ("fail", True, True)


@pytest.mark.trio
async def test_the_doctor_compares_the_daemons_pin() -> None:
    with tls_peer(shared_certificate()) as peer:
        [wrong] = await check_daemon(peer.url, "dct_enrol_x", PeerTrust(pins=("a" * 52,)))
        assert wrong.status == "fail"
        assert shared_certificate().pin in wrong.detail
        assert "certificate show" in wrong.fix
    assert not peer.heard
