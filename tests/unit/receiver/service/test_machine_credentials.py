"""The secret of a machine on its disk: lost if these fail, it is readable by others or doesn't survive a restart."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from receiver.service.agent_token import refuse_token_on_kernel_command_line
from receiver.service.machine_credentials import SECRET_FILE, MachineCredentials


def test_without_a_state_directory_the_secret_lives_in_memory() -> None:
    credentials = MachineCredentials("dct_enrol_x")
    assert (credentials.bearer, credentials.enrolled) == ("dct_enrol_x", False)
    assert credentials.keep("dcm_x") == ""
    assert (credentials.bearer, credentials.enrolled) == ("dcm_x", True)
    credentials.drop()
    assert (credentials.bearer, credentials.enrolled) == ("dct_enrol_x", False)
    assert "dct_" not in repr(credentials)


def test_a_secret_survives_a_restart_in_a_file_for_its_user_only(tmp_path: Path) -> None:
    state = tmp_path / "state"
    MachineCredentials("", state).keep("dcm_1")
    MachineCredentials("", state).keep("dcm_2")
    path = state / SECRET_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert MachineCredentials("", state).bearer == "dcm_2"
    MachineCredentials("", state).drop()
    assert MachineCredentials("dct_enrol_x", state).bearer == "dct_enrol_x"


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    MachineCredentials("", tmp_path).keep("dcm_1")
    (tmp_path / SECRET_FILE).chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        MachineCredentials("", tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"dcm_\xff\n", b"x" * 1000])
def test_a_damaged_file_counts_as_no_secret(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / SECRET_FILE
    path.touch(0o600)
    path.write_bytes(content)
    assert not MachineCredentials("", tmp_path).enrolled


def test_a_full_disk_leaves_the_secret_in_memory(tmp_path: Path) -> None:
    credentials = MachineCredentials("", tmp_path)
    (tmp_path / SECRET_FILE).with_suffix(".new").mkdir()
    assert "enrols again" in credentials.keep("dcm_1")
    assert credentials.bearer == "dcm_1"


@pytest.mark.parametrize(
    "text",
    [
        "quiet diskcast.token=dct_enrol_x",
        "quiet diskcast.token=anything",
        "root=/dev/nfs x=dct_enrol_Vs5dHf2kqLw",
        "dcm_Vs5dHf2kqLwVs5dHf2kqLw",
    ],
)
def test_a_token_on_the_kernel_command_line_is_refused_with_the_reason(tmp_path: Path, text: str) -> None:
    """Everybody who can boot over the network reads it."""
    path = tmp_path / "cmdline"
    path.write_text(text + "\n")
    with pytest.raises(ConfigurationError, match="everyone who can boot") as refused:
        refuse_token_on_kernel_command_line(path)
    assert "Vs5dHf2k" not in str(refused.value)


def test_public_pins_on_the_kernel_command_line_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "cmdline"
    path.write_text("quiet diskcast.server=https://10.0.0.1:7400 diskcast.pin=abcd diskcast.trust=RWQx\n")
    refuse_token_on_kernel_command_line(path)
    refuse_token_on_kernel_command_line(tmp_path / "none")
