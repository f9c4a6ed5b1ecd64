"""A machine's identity. Lost if these fail: the daemon doesn't find the machine in the operator's list."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from protocol.errors import ConfigurationError, InterfaceError
from protocol.model.session_records import MachineIdentity
from receiver.cli import cli
from receiver.disk.inventory.block_devices import SystemPaths
from receiver.hardware.read_hardware import read_hardware
from receiver.reception import machine_identity
from receiver.reception.machine_identity import describe_machine, read_identity
from receiver.service.agent_token import read_token

ADDRESSES = {
    "lo": "00:00:00:00:00:00",
    "br0": "52:54:00:00:00:99",
    "eth0": "52:54:00:AA:BB:01",
    "eth1": "52:54:00:aa:bb:02",
    "docker0": "02:42:00:00:00:01",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a ``/sys`` with two cards, a bridge and a container's interface."""
    for name in ("eth0", "eth1"):
        (tmp_path / "class/net" / name / "device").mkdir(parents=True)
    entries = {
        name: [SimpleNamespace(family=socket.AF_PACKET, address=address)]
        for name, address in ADDRESSES.items()
    }
    monkeypatch.setattr(machine_identity.psutil, "net_if_addrs", lambda: entries)
    return tmp_path


def firmware(root: Path, **fields: str) -> None:
    directory = root / "class/dmi/id"
    directory.mkdir(parents=True)
    for name, text in fields.items():
        (directory / name).write_text(text)


def test_a_machine_is_known_by_its_cards_the_rooms_one_first(root: Path) -> None:
    found = read_identity("eth1", root=root)
    assert found == MachineIdentity(("52:54:00:aa:bb:02", "52:54:00:aa:bb:01"), "", "")


def test_a_bridge_that_the_room_is_on_counts(root: Path) -> None:
    assert read_identity("br0", root=root).macs[0] == "52:54:00:00:00:99"


def test_the_cards_of_a_bond_keep_their_own_addresses(root: Path) -> None:
    """Otherwise a machine doesn't enrol with the boot token of the card that it booted by."""
    (root / "class/net/eth1/bonding_slave").mkdir()
    (root / "class/net/eth1/bonding_slave/perm_hwaddr").write_text("52:54:00:aa:bb:77\n")
    macs = read_identity("br0", root=root).macs
    assert macs == ("52:54:00:00:00:99", "52:54:00:aa:bb:01", "52:54:00:aa:bb:77", "52:54:00:aa:bb:02")


def test_serial_number_and_asset_tag_come_from_the_firmware(root: Path) -> None:
    firmware(root, product_serial="PF1XYZ\n", chassis_asset_tag="LAB-7\n", product_name="T14\n")
    found = read_identity("eth0", root=root)
    assert (found.serial, found.asset_tag) == ("PF1XYZ", "LAB-7")
    assert describe_machine("eth0", read_hardware(SystemPaths(sys=root)), root=root)["product_name"] == "T14"


def test_a_board_without_dmi_has_its_serial_number_too(root: Path) -> None:
    (root / "firmware/devicetree/base").mkdir(parents=True)
    (root / "firmware/devicetree/base/serial-number").write_bytes(b"10000000abcdef\0")
    assert read_identity("eth0", root=root).serial == "10000000abcdef"


# -- the token ------------------------------------------------------------------------------------------------


def test_a_token_comes_from_file_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISKCAST_TOKEN", "DISKCAST_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "token"
    path.write_text("dct_enrol_1\n")
    assert read_token(None) == ""
    assert read_token(path) == "dct_enrol_1"
    monkeypatch.setenv("DISKCAST_TOKEN_FILE", str(path))
    assert read_token(None) == "dct_enrol_1"
    monkeypatch.setenv("DISKCAST_TOKEN", "dct_enrol_2")
    assert read_token(None) == "dct_enrol_2"


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"two words", b"line\nline", b"\x00\xff" * 4000, "ü".encode()]
)
def test_an_invalid_token_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="contains no token"):
        read_token(path)
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_token(tmp_path / "none")


# -- errors that retrying doesn't fix -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--interface", "lo"], ConfigurationError, "DISKCAST_SERVER"),
        (["--interface", "none0", "--server", "http://127.0.0.1:1"], InterfaceError, "no interface 'none0'"),
        (
            ["--interface", "lo", "--server", "ftp://x"],
            ConfigurationError,
            "isn't the URL of a diskcast daemon",
        ),
        (
            ["--interface", "lo", "--server", "http://127.0.0.1:1", "--memory", "1"],
            ConfigurationError,
            "too small",
        ),
        (
            ["--interface", "lo", "--server", "http://127.0.0.1:1"],
            ConfigurationError,
            "this machine has no identity",
        ),
    ],
)
def test_an_impossible_configuration_ends_the_agent_at_once(
    arguments: list[str], error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISKCAST_SERVER", raising=False)
    monkeypatch.setattr(
        "receiver.reception.machine_identity.read_identity", lambda _interface: MachineIdentity((), "", "")
    )
    result = CliRunner().invoke(cli, ["run", "--target", "t", *arguments])
    assert isinstance(result.exception, error)
    assert words in str(result.exception)
