"""What deploy/ ships works with the programs as they are: units."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from protocol import errors
from receiver import cli as agent_cli
from sender import cli as sender_cli

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def _name(path: Path) -> str:
    return path.name


# -- units ---------------------------------------------------------------------------------------------------------


def _settings(unit: Path) -> dict[str, list[str]]:
    settings: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            settings.setdefault(key, []).append(value)
    return settings


@pytest.mark.parametrize("unit", UNITS, ids=_name)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd isn't installed")
def test_systemd_finds_no_fault_in_a_unit(unit: Path, tmp_path: Path) -> None:
    installed = tmp_path / unit.name
    installed.write_text(re.sub(r"/opt/diskcast/bin/\S+", sys.executable, unit.read_text()))
    done = subprocess.run(
        ["systemd-analyze", "verify", installed], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if tmp_path.name in line or unit.name in line]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.parametrize("unit", UNITS, ids=_name)
def test_a_unit_starts_its_program_with_options_that_exist(unit: Path) -> None:
    [command] = _settings(unit)["ExecStart"]
    words = shlex.split(command)
    program = Path(words[0]).name
    implementation: click.Command = {"diskcast": sender_cli.cli, "diskcast-agent": agent_cli.cli}[program]
    for word in words[1:]:
        if not isinstance(implementation, click.Group):
            break
        found = implementation.get_command(click.Context(implementation), word)
        assert found is not None, word
        implementation = found
    known = {option for parameter in implementation.params for option in parameter.opts}
    options = {word for word in words if word.startswith("--")}
    for environment in _settings(unit).get("EnvironmentFile", []):
        if environment.startswith("-"):  # somebody's own, which may be missing
            continue
        example = DEPLOY / "systemd" / f"{Path(environment).name}.example"
        options |= {
            word for line in _assignments(example).values() for word in line.split() if word.startswith("--")
        }
    assert options <= known


def _assignments(environment: Path) -> dict[str, str]:
    lines = [line for line in environment.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_the_examples_define_every_variable_that_the_units_use() -> None:
    defined = {name for path in (DEPLOY / "systemd").glob("*.env.example") for name in _assignments(path)}
    used = {name for unit in UNITS for name in re.findall(r"\$\{?(\w+)", unit.read_text())}
    assert used == defined


@pytest.mark.parametrize("unit", UNITS, ids=_name)
def test_units_know_only_exit_codes_that_exist(unit: Path) -> None:
    codes = {
        member.exit_code
        for member in vars(errors).values()
        if isinstance(member, type) and issubclass(member, errors.DiskcastError)
    }
    codes |= {errors.EXIT_USAGE, errors.EXIT_INTERRUPTED}
    [mentioned] = _settings(unit)["RestartPreventExitStatus"]
    assert {int(word) for word in mentioned.split()} <= codes
