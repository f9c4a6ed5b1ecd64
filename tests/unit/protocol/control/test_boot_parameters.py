"""The kernel command line of netbooted machines: if these fail, a room boots with the wrong daemon, pin or action."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.control.boot_parameters import (
    COMMAND_LINE_CHARS_MAX,
    PARAMETERS,
    AfterCast,
    BondMode,
    BootParameters,
    LiveMode,
    format_boot_parameters,
    parse_boot_parameters_untrusted,
)
from protocol.errors import ConfigurationError
from protocol.trust.pin import pin_of
from protocol.trust.secret_key import SecretKey

KEY = SecretKey.create(key_id=bytes(range(8)), seed=bytes(range(32))).public
OTHER_KEY = SecretKey.create(key_id=bytes(8), seed=bytes(32)).public
TOKEN = "dcb_" + "aZ09-_x1" * 5
EVERYTHING = BootParameters(
    servers=("https://10.0.0.1:7400", "https://[fd00::1]:7400"),
    pins=(pin_of(b"one"), pin_of(b"two")[:20]),
    boot_token=TOKEN,
    mode=LiveMode.MENU,
    target="auto:min=100G,max=600G",
    after=AfterCast.POWEROFF,
    root_sha256="0123456789abcdef" * 4,
    vlan=42,
    bond=BondMode.LACP,
    image_url="https://10.0.0.1/images/lab.dci",
    keys=(KEY, OTHER_KEY),
    version_min=202611301405,
    tags=frozenset({"lab-pc", "uefi"}),
    grow=True,
    efi_label="lab",
    boot_mac="52:54:00:99:00:0a",
)


def test_everything_survives_writing_and_reading() -> None:
    line = format_boot_parameters(EVERYTHING)
    assert (
        parse_boot_parameters_untrusted(f"BOOT_IMAGE=/vmlinuz quiet {line} console=ttyS0,115200\n")
        == EVERYTHING
    )
    assert {word.partition("=")[0] for word in line.split()} == {one.name for one in PARAMETERS}


def test_defaults_need_no_word() -> None:
    assert format_boot_parameters(BootParameters()) == ""
    assert parse_boot_parameters_untrusted("quiet") == BootParameters()


def test_each_attribute_has_exactly_one_word() -> None:
    fields = [one.field for one in PARAMETERS]
    assert sorted(fields) == sorted(
        {field.name for field in dataclasses.fields(BootParameters)} - {"unknown"}
    )


def test_lists_join_the_last_word_counts_and_the_highest_floor() -> None:
    found = parse_boot_parameters_untrusted(
        f"diskcast.server=https://a:1 diskcast.server=https://b:2,https://a:1 diskcast.mode=shell diskcast.mode=menu "
        f"diskcast.min-version=9 diskcast.min-version=7 diskcast.trust={KEY.text} diskcast.trust={OTHER_KEY.text} "
        "diskcast.tag=a diskcast.tag=b,c"
    )
    assert found.servers == ("https://a:1", "https://b:2")
    assert (found.mode, found.version_min, found.tags) == (LiveMode.MENU, 9, {"a", "b", "c"})
    assert found.keys == (KEY, OTHER_KEY)


def test_the_command_line_replaces_what_was_built_in() -> None:
    built_in = parse_boot_parameters_untrusted(
        "diskcast.server=https://old:1 diskcast.after=poweroff diskcast.vlan=7",
        source="in /etc/diskcast/boot.conf",
    )
    found = parse_boot_parameters_untrusted(
        "diskcast.server=https://new:2 diskcast.after=reboot", defaults=built_in
    )
    assert (found.servers, found.after, found.vlan) == (("https://new:2",), AfterCast.REBOOT, 7)


@pytest.mark.parametrize(
    ("word", "address"),
    [
        ("BOOTIF=01-52-54-00-99-00-0A", "52:54:00:99:00:0a"),
        ("BOOTIF=01-", ""),  # iPXE without a card
        ("BOOTIF=", ""),
        ("BOOTIF", ""),
        ("BOOTIF=20-80-00-02-08-fe-80", ""),  # InfiniBand
        ("BOOTIF=eth0", ""),
    ],
)
def test_foreign_forms_of_bootif_stop_no_machine(word: str, address: str) -> None:
    assert parse_boot_parameters_untrusted(word).boot_mac == address


@pytest.mark.parametrize(
    "word",
    [
        "diskcast.server=ftp://10.0.0.1",
        "diskcast.server=10.0.0.1:7400",
        "diskcast.server=https://user:secret@10.0.0.1",
        "diskcast.server=https://10.0.0.1:7400/api",
        "diskcast.server",
        "diskcast.server=",
        f"diskcast.server={','.join(['https://a:1'] * 9)}",
        "diskcast.pin=abc",
        "diskcast.pin=",
        "diskcast.mode=install",
        "diskcast.after=exit",
        "diskcast.sha256=ABCDEF",
        "diskcast.vlan=0",
        "diskcast.vlan=4095",
        "diskcast.vlan=٣",
        "diskcast.bond=mode4",
        "diskcast.trust=RWabc",
        "diskcast.min-version=7a",
        f"diskcast.min-version={2**64}",
        f"diskcast.min-version={'9' * 5000}",
        "diskcast.grow=true",
        "diskcast.efi-entry=a;b",
        "diskcast.target=a\x1b[2J",
        "diskcast.image=lab.dci",
    ],
)
def test_a_typo_is_an_error_that_names_the_parameter(word: str) -> None:
    with pytest.raises(ConfigurationError, match="on the kernel command line") as refused:
        parse_boot_parameters_untrusted(f"quiet {word}")
    message = str(refused.value)
    assert message.startswith(word.partition("=")[0])
    assert "\x1b" not in message
    assert len(message) < 400


def test_an_error_names_the_file_that_has_the_typo() -> None:
    with pytest.raises(ConfigurationError, match="in /etc/diskcast/boot"):
        parse_boot_parameters_untrusted("diskcast.vlan=x", source="in /etc/diskcast/boot.conf")


def test_the_boot_token_stays_out_of_messages_and_reprs() -> None:
    assert TOKEN not in repr(EVERYTHING)
    with pytest.raises(ConfigurationError) as refused:
        parse_boot_parameters_untrusted(f"diskcast.boot={TOKEN}!")
    assert TOKEN not in str(refused.value)


def test_names_of_a_newer_boot_service_are_kept_for_a_warning() -> None:
    found = parse_boot_parameters_untrusted(
        "diskcast.color=blue diskcast.color=red other=1 diskcast.x\x07y=1"
    )
    assert found.unknown == ("diskcast.color", "diskcast.x?y")


@pytest.mark.parametrize(
    "change",
    [
        {"servers": ("https://a b",)},
        {"target": "model=samsung ssd"},
        {"target": "$(reboot)"},
        {"target": ""},
        {"servers": ("https://a,b",)},
        {"servers": ("nonsense",)},
        {"pins": ("abc",)},
        {"boot_mac": "nonsense"},
        {"vlan": 5000},
    ],
)
def test_a_value_that_a_boot_loader_would_change_isnt_written(change: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        format_boot_parameters(dataclasses.replace(EVERYTHING, **change))  # type: ignore[arg-type]


def test_a_line_that_a_kernel_would_cut_isnt_written() -> None:
    keys = tuple(SecretKey.create(key_id=bytes([n] * 8), seed=bytes([n] * 32)).public for n in range(16))
    pins = tuple(pin_of(bytes([n])) for n in range(8))
    with pytest.raises(ConfigurationError, match="characters"):
        format_boot_parameters(dataclasses.replace(EVERYTHING, keys=keys, pins=pins))
    with pytest.raises(ConfigurationError, match="characters"):
        parse_boot_parameters_untrusted("x" * (COMMAND_LINE_CHARS_MAX + 1))


@given(st.text(max_size=200))
def test_no_other_text_raises_anything_undocumented(text: str) -> None:
    for parameter in PARAMETERS:
        try:
            parse_boot_parameters_untrusted(f"{parameter.name}={text}")
        except ConfigurationError:
            continue
