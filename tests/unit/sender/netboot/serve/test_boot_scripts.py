"""Boot scripts: a failure would loop a room, leave it at a prompt, or run text from outside as commands."""

from __future__ import annotations

import re
import subprocess
import urllib.parse
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from protocol.control.boot_parameters import BootParameters, LiveMode, parse_boot_parameters_untrusted
from protocol.errors import ProtocolError
from sender.netboot.serve.boot_files import ServiceAddress
from sender.netboot.serve.boot_query import (
    BootQuery,
    parse_grub_file_untrusted,
    parse_ipxe_query_untrusted,
)
from sender.netboot.serve.boot_scripts import (
    KERNEL_ARGUMENTS_DEFAULT,
    DiskBoot,
    LiveBoot,
    grub_disk_script,
    grub_live_script,
    grub_menu_file,
    grub_start_script,
    ipxe_disk_script,
    ipxe_live_script,
    ipxe_start_script,
    is_kernel_arguments,
    shown,
)
from tests.support.network.dhcp_messages import MAC, UUID
from tests.support.programs.processes import require_program

SERVICE = ServiceAddress(IPv4Address("10.99.0.2"))
TOKEN = "dcb_" + "a" * 43
PARAMETERS = BootParameters(
    servers=("https://10.99.0.2:7400",), pins=("a" * 52,), boot_token=TOKEN, mode=LiveMode.RUN, boot_mac=MAC
)
HOSTILE = 'pc"; reboot; ${net0/mac} && shell || `id` $(id)\nboot \\'


def live(name: str = "pc-07") -> LiveBoot:
    return LiveBoot(SERVICE, ("initrd", "firmware"), PARAMETERS, KERNEL_ARGUMENTS_DEFAULT, name)


def kernel_line(script: str) -> str:
    found = re.search(r"^(?:kernel|if linux) (\S+) ([^|;]*)", script, re.MULTILINE)
    assert found
    return found[2]


def test_the_live_system_gets_its_parameters_from_both_loaders() -> None:
    for script in (ipxe_live_script(live()), grub_live_script(live(), by_http=False)):
        line = kernel_line(script)
        assert parse_boot_parameters_untrusted(line) == PARAMETERS
        assert KERNEL_ARGUMENTS_DEFAULT in line


def test_ipxe_names_each_initrd_as_the_uefi_kernel_looks_for_it() -> None:
    script = ipxe_live_script(live())
    for name in ("initrd", "firmware"):
        assert f"initrd --name {name} http://10.99.0.2:8069/{name} ||" in script
        assert f"initrd={name} " in kernel_line(script)


def test_no_text_from_outside_becomes_a_command() -> None:
    for script in (
        ipxe_live_script(live(HOSTILE)),
        ipxe_disk_script(DiskBoot(HOSTILE, menu_offered=True), SERVICE),
        grub_live_script(live(HOSTILE), by_http=True),
        grub_disk_script(DiskBoot(HOSTILE, menu_offered=True), "(tftp,10.99.0.2)/boot/-/-/menu.cfg"),
    ):
        assert "reboot;" not in script
        assert "$(" not in script
        assert "net0" not in script or "${net0" not in script
        assert "\nboot \\" not in script
    assert shown(HOSTILE) == "pc reboot net0/mac shell id id boot"


def test_ipxe_never_asks_again_in_the_boot_of_a_disk() -> None:
    """A room with the network first in its boot order would loop."""
    script = ipxe_disk_script(DiskBoot("nothing is planned"), SERVICE)
    assert "boot.ipxe" not in script
    assert "prompt" not in script
    lines = script.splitlines()
    assert lines.index("sanboot --no-describe --drive 0x80 ||") < lines.index("exit 1")
    assert lines[-2:] == ["chain --autofree http://10.99.0.2:8069/disk.efi ||", "exit 1"]


def test_the_menu_is_one_key_away() -> None:
    script = ipxe_disk_script(DiskBoot("nothing is planned", menu_offered=True), SERVICE)
    assert "prompt --key m --timeout 3000 " in script
    assert "&menu=1 || goto disk" in script
    query = BootQuery(MAC, UUID, "PF1XYZ", uefi=True, arm64=False, menu=False)
    menu = grub_menu_file(SERVICE, query, by_http=False)
    assert menu == f"(tftp,10.99.0.2)/boot/{MAC}/{UUID}/menu.cfg"
    grub = grub_disk_script(DiskBoot("nothing is planned", menu_offered=True), menu)
    assert "set timeout=3" in grub
    assert "--hotkey=m" in grub
    assert f"configfile {menu}" in grub


def test_grub_accepts_its_scripts(tmp_path: Path) -> None:
    menu = "(tftp,10.99.0.2)/boot/-/-/menu.cfg"
    scripts = [
        grub_start_script(SERVICE, by_http=False),
        grub_start_script(SERVICE, by_http=True),
        grub_live_script(live(HOSTILE), by_http=True),
        grub_disk_script(DiskBoot(HOSTILE), menu),
        grub_disk_script(DiskBoot(HOSTILE, menu_offered=True), menu),
    ]
    for index, script in enumerate(scripts):
        path = tmp_path / f"{index}.cfg"
        path.write_text(script)
        done = subprocess.run(
            [require_program("grub-script-check"), path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + script


def test_every_label_of_an_ipxe_script_exists() -> None:
    scripts = [
        ipxe_start_script(SERVICE),
        ipxe_live_script(live()),
        ipxe_disk_script(DiskBoot("x", menu_offered=True), SERVICE),
        ipxe_disk_script(DiskBoot("x"), SERVICE),
    ]
    for script in scripts:
        assert script.startswith("#!ipxe\n")
        labels = re.findall(r"^:(\w+)$", script, re.MULTILINE)
        assert len(labels) == len(set(labels))
        assert set(re.findall(r"goto (\w+)", script)) <= set(labels)


def test_the_first_script_passes_the_machine_on_to_the_second() -> None:
    found = re.search(
        r"chain \S+ \S+ http://10\.99\.0\.2:8069/boot\.ipxe\?(\S+) \|\|", ipxe_start_script(SERVICE)
    )
    assert found
    values = {
        "${netX/mac}": MAC,
        "${uuid}": UUID,
        "${serial:uristring}": "PF%201",
        "${platform}": "efi",
        "${buildarch}": "arm64",
    }
    query = found[1]
    for setting, value in values.items():
        assert setting in query
        query = query.replace(setting, value)
    assert parse_ipxe_query_untrusted(query) == BootQuery(
        MAC, UUID, "PF 1", uefi=True, arm64=True, menu=False
    )
    assert parse_ipxe_query_untrusted(query + "&menu=1") == BootQuery(
        MAC, UUID, "PF 1", uefi=True, arm64=True, menu=True
    )


def test_grub_passes_the_machine_on_in_a_file_name() -> None:
    script = grub_start_script(SERVICE, by_http=True)
    assert "configfile (http,10.99.0.2:8069)/boot/$net_default_mac/$uuid/run.cfg" in script
    expected = BootQuery(MAC, UUID, "", uefi=True, arm64=False, menu=False)
    assert parse_grub_file_untrusted(f"boot/{MAC}/{UUID}/run.cfg") == expected
    assert parse_grub_file_untrusted(f"boot/{MAC}/{UUID}/menu.cfg") == BootQuery(
        MAC, UUID, "", uefi=True, arm64=False, menu=True
    )
    # GRUB has no MAC address and no SMBIOS: the slashes become one.
    assert parse_grub_file_untrusted("boot/-/run.cfg") == BootQuery(
        "", "", "", uefi=True, arm64=False, menu=False
    )
    assert parse_grub_file_untrusted("boot/run.cfg") is None
    assert parse_grub_file_untrusted("vmlinuz") is None


@pytest.mark.parametrize("query", ["uuid=x", "mac=", "mac=52:54:00:99:00", "a=b&" * 30, "mac=" + "5" * 2000])
def test_a_query_without_a_mac_address_is_refused(query: str) -> None:
    with pytest.raises(ProtocolError):
        parse_ipxe_query_untrusted(query)


def test_useless_identities_are_left_out() -> None:
    serial = urllib.parse.quote("two\nlines")
    query = parse_ipxe_query_untrusted(
        f"mac=52-54-00-99-00-01&uuid=none&serial={serial}&platform=pcbios&arch=i386"
    )
    assert query == BootQuery(MAC, "", "", uefi=False, arm64=False, menu=False)


def test_kernel_arguments_that_a_loader_would_change_are_refused() -> None:
    assert is_kernel_arguments(KERNEL_ARGUMENTS_DEFAULT)
    assert not is_kernel_arguments("a && shell")
    assert not is_kernel_arguments("a=$b")
    assert not is_kernel_arguments("a\nshell")
