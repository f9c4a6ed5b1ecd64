"""Restarting after a cast: lost if these fail, a room of imaged machines waits at a prompt, or restarts too early.

The kernel's reboot(2) really runs, in a PID namespace, where it ends the namespace's first process by a signal.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.control.boot_parameters import AfterCast
from protocol.errors import ConfigurationError, MissingDependencyError
from receiver.service.restart import prepare_restart

RESTART = """
import os, sys
from pathlib import Path
from protocol.control.boot_parameters import AfterCast
from receiver.service.restart import prepare_restart
assert os.getpid() == 1, "this would restart the machine that runs the tests"
prepare_restart(AfterCast(sys.argv[1]), systemd_mark=Path("/nonexistent"))()
"""


def status_file(folder: Path, effective: int) -> Path:
    path = folder / "status"
    path.write_text(f"Name:\tpython3\nCapPrm:\t{(1 << 41) - 1:016x}\nCapEff:\t{effective:016x}\n")
    return path


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("action", "number"), [(AfterCast.REBOOT, signal.SIGHUP), (AfterCast.POWEROFF, signal.SIGINT)]
)
def test_the_kernel_restarts_or_powers_off(action: AfterCast, number: signal.Signals) -> None:
    """reboot(2): the first process of another PID namespace ends by SIGHUP or SIGINT."""
    argv = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        sys.executable,
        "-c",
        RESTART,
        action,
    ]
    assert subprocess.run(argv, check=False, capture_output=True).returncode == -number


@pytest.mark.parametrize("action", [AfterCast.WAIT, AfterCast.EXIT])
def test_a_machine_that_stays_on_needs_nothing(tmp_path: Path, action: AfterCast) -> None:
    missing = tmp_path / "missing"
    assert prepare_restart(action, systemd_mark=missing, status=status_file(tmp_path, 0)) is None


def test_without_systemd_and_the_capability_the_agent_refuses_to_start(tmp_path: Path) -> None:
    everything_else = (1 << 41) - 1 & ~(1 << 22)
    status = status_file(tmp_path, everything_else)
    with pytest.raises(ConfigurationError, match="CAP_SYS_BOOT"):
        prepare_restart(AfterCast.REBOOT, systemd_mark=tmp_path / "missing", status=status)
    with pytest.raises(ConfigurationError, match="CAP_SYS_BOOT"):
        prepare_restart(AfterCast.REBOOT, systemd_mark=tmp_path / "missing", status=tmp_path / "missing")


def test_with_the_capability_alone_it_starts(tmp_path: Path) -> None:
    status = status_file(tmp_path, 1 << 22)
    assert prepare_restart(AfterCast.REBOOT, systemd_mark=tmp_path / "missing", status=status) is not None


def test_with_systemd_systemctl_must_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("receiver.disk.fit.programs._SYSTEM_PATH", ())
    with pytest.raises(MissingDependencyError, match="apt install systemd"):
        prepare_restart(AfterCast.REBOOT, systemd_mark=tmp_path)
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho 'no bus'\nexit 1\n")
    (tmp_path / "systemctl").chmod(0o755)
    restart = prepare_restart(AfterCast.POWEROFF, systemd_mark=tmp_path)
    assert restart is not None
    with pytest.raises(ConfigurationError, match=r"the image is on the target.*no bus"):
        restart()
