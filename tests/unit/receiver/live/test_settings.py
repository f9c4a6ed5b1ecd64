"""The settings of a netbooted machine: lost if these fail, an attacker on the boot network chooses the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.control.boot_parameters import AfterCast
from protocol.trust.pin import pin_of
from protocol.trust.secret_key import SecretKey
from receiver.live.messages import FOREIGN_KEY, FOREIGN_PIN, INVALID_SETTING, BootStopError
from receiver.live.settings import SettingsPaths, read_settings

PIN, OTHER_PIN = pin_of(b"daemon"), pin_of(b"attacker")
KEY = SecretKey.create(key_id=bytes(range(8)), seed=bytes(range(32))).public
OTHER_KEY = SecretKey.create(key_id=bytes(8), seed=bytes(32)).public


def paths(folder: Path, command_line: str, configuration: str = "", *, key: bool = False) -> SettingsPaths:
    (folder / "cmdline").write_text(command_line)
    (folder / "boot.conf").write_text(configuration)
    keys = folder / "trusted-keys.d"
    if key:
        keys.mkdir(mode=0o755)
        (keys / "site.pub").write_text(KEY.file_text())
        (keys / "site.pub").chmod(0o644)
    return SettingsPaths(folder / "cmdline", folder / "boot.conf", keys)


def test_the_command_line_alone_is_enough(tmp_path: Path) -> None:
    found = read_settings(paths(tmp_path, f"quiet diskcast.server=https://10.0.0.1:7400 diskcast.pin={PIN}"))
    assert (found.servers, found.pins) == (("https://10.0.0.1:7400",), (PIN,))


def test_the_command_line_chooses_what_isnt_trust(tmp_path: Path) -> None:
    built_in = f"# made by diskcast.pin=nonsense\ndiskcast.server=https://old:1\ndiskcast.pin={PIN} diskcast.vlan=7\n"
    found = read_settings(
        paths(tmp_path, "diskcast.server=https://new:2 diskcast.after=poweroff", built_in, key=True)
    )
    assert (found.servers, found.pins, found.vlan) == (("https://new:2",), (PIN,), 7)
    assert found.after is AfterCast.POWEROFF


def test_a_pin_that_wasnt_built_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BootStopError, match="wrong pin") as stop:
        read_settings(paths(tmp_path, f"diskcast.pin={OTHER_PIN}", f"diskcast.pin={PIN}"))
    assert FOREIGN_PIN.matches(str(stop.value))


def test_a_second_pin_that_wasnt_built_in_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(BootStopError, match="wrong pin"):
        read_settings(paths(tmp_path, f"diskcast.pin={PIN},{OTHER_PIN}", f"diskcast.pin={PIN}"))


@pytest.mark.parametrize(("given", "built_in"), [(PIN[:20], PIN), (PIN, PIN[:24]), (PIN, PIN)])
def test_a_prefix_of_a_pin_names_the_same_certificate(tmp_path: Path, given: str, built_in: str) -> None:
    found = read_settings(paths(tmp_path, f"diskcast.pin={given}", f"diskcast.pin={built_in}"))
    assert found.pins == (built_in,)


def test_a_key_that_wasnt_built_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BootStopError, match="wrong image key") as stop:
        read_settings(paths(tmp_path, f"diskcast.trust={OTHER_KEY.text}", key=True))
    assert FOREIGN_KEY.matches(str(stop.value))


def test_a_key_that_was_built_in_may_be_repeated_and_without_any_each_counts(tmp_path: Path) -> None:
    read_settings(paths(tmp_path, f"diskcast.trust={KEY.text}", key=True))
    (tmp_path / "other").mkdir()
    assert read_settings(paths(tmp_path / "other", f"diskcast.trust={OTHER_KEY.text}")).keys == (OTHER_KEY,)


@pytest.mark.parametrize(
    ("command_line", "configuration", "place"),
    [("diskcast.vlan=x", "", "kernel command line"), ("", "diskcast.vlan=x", "boot.conf")],
)
def test_a_typo_is_named_with_its_place(
    tmp_path: Path, command_line: str, configuration: str, place: str
) -> None:
    with pytest.raises(BootStopError, match=place) as stop:
        read_settings(paths(tmp_path, command_line, configuration))
    assert INVALID_SETTING.matches(str(stop.value))


def test_without_any_file_everything_is_at_its_default(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert read_settings(SettingsPaths(missing, missing, missing)).servers == ()
