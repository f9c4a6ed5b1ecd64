"""Tests of the unit files with systemd's tools: they are valid, and the daemon has few privileges."""

from __future__ import annotations

import configparser
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from protocol import errors
from sender.config.config_file import load_config
from sender.http.descriptor_limit import DESCRIPTORS_NEEDED
from tests.support.programs.processes import require_program

SYSTEMD = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
UNITS = sorted(SYSTEMD.glob("*.service"), key=lambda path: path.name)
EXPOSURE_MAX = {"diskcast.service": 1.6, "diskcast-send@.service": 1.6}
"""Exposure, of 10, that systemd computes for a compromised program; others have 3, because they write disks."""


def _unit(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(
        strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",)
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_understands_every_line(path: Path, tmp_path: Path) -> None:
    analyze = require_program("systemd-analyze")
    # systemd looks for the program, but diskcast isn't installed at its final path.
    copy = tmp_path / path.name
    copy.write_text(re.sub(r"/opt/diskcast/bin/\S+", "/bin/true", path.read_text()))
    done = subprocess.run([analyze, "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert path.name.replace("@.", "@") not in done.stderr.replace("@i.", "@"), done.stderr


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_program_that_is_taken_over_can_do_little(path: Path) -> None:
    analyze = require_program("systemd-analyze")
    bound = EXPOSURE_MAX.get(path.name, 3.0)
    command = [analyze, "security", "--offline=yes", f"--threshold={round(bound * 10)}", "--no-pager", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_daemon_is_watched_and_comes_back() -> None:
    service = _unit(SYSTEMD / "diskcast.service")["Service"]
    assert service["Type"] == "notify"
    assert service["WatchdogSec"] == "20s"
    assert service["Restart"] == "always"
    assert int(service["LimitNOFILE"]) >= DESCRIPTORS_NEEDED


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_what_is_not_tried_again_are_exit_codes_that_exist(path: Path) -> None:
    known = {
        cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and hasattr(cls, "exit_code")
    }
    known |= {errors.EXIT_USAGE, errors.EXIT_INTERRUPTED}
    text = _unit(path)["Service"].get("RestartPreventExitStatus", "")
    codes = {int(code) for code in text.split()}
    assert codes <= known
    assert errors.ConfigurationError.exit_code in codes or not codes


def test_a_damaged_database_waits_for_the_operator_and_an_absent_one_does_not() -> None:
    codes = _unit(SYSTEMD / "diskcast.service")["Service"]["RestartPreventExitStatus"].split()
    assert str(errors.DatabaseDamagedError.exit_code) in codes
    assert str(errors.DatabaseUnavailableError.exit_code) not in codes


@pytest.mark.parametrize("user_id", [0, 997])
def test_the_state_directory_is_the_one_of_the_configuration(
    user_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service, its doctor, ``diskcast database`` and root must use the same folder."""
    monkeypatch.setattr("os.geteuid", lambda: user_id)
    state = load_config(SYSTEMD.parent / "diskcast.toml").server.state_directory
    service = _unit(SYSTEMD / "diskcast.service")["Service"]
    assert Path("/var/lib") / service["StateDirectory"] == state
    folders = {line.split()[1] for line in _lines(SYSTEMD / "diskcast.tmpfiles.conf")}
    assert {str(state), str(state / "images"), str(state / "cache")} <= folders
    (user,) = (line.split()[1] for line in _lines(SYSTEMD / "diskcast.sysusers.conf"))
    assert service["User"] == user


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def test_the_user_and_its_folders_can_be_made(tmp_path: Path) -> None:
    """Apply them in a separate root directory, with the programs that a package manager runs."""
    sysusers, tmpfiles = require_program("systemd-sysusers"), require_program("systemd-tmpfiles")
    (tmp_path / "etc").mkdir()
    conf = SYSTEMD / "diskcast.sysusers.conf"
    dry = subprocess.run([sysusers, "--dry-run", conf], capture_output=True, text=True, check=False)
    assert dry.returncode == 0, dry.stderr
    if os.geteuid() != 0:
        pytest.skip("making users and their folders needs root, even below another root directory")
    subprocess.run([sysusers, f"--root={tmp_path}", conf], check=True, capture_output=True)
    passwd = (tmp_path / "etc/passwd").read_text()
    assert re.search(
        r"^diskcast:x:\d+:\d+:diskcast daemon:/var/lib/diskcast:/usr/sbin/nologin$", passwd, re.MULTILINE
    )
    user_id = int(passwd.split(":")[2])
    # systemd reads the group file of the other root too
    command = [tmpfiles, "--create", f"--root={tmp_path}", SYSTEMD / "diskcast.tmpfiles.conf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    images = (tmp_path / "var/lib/diskcast/images").stat()
    assert (stat.S_IMODE(images.st_mode), images.st_uid) == (0o2775, user_id)
    assert stat.S_IMODE((tmp_path / "var/lib/diskcast/cache").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "etc/diskcast").stat().st_mode) == 0o750
