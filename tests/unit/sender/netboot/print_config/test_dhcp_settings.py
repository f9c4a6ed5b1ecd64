"""Settings of other DHCP servers: a failure would break an administrator's DHCP server, or loop iPXE."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from sender.netboot.print_config.dhcp_settings import DhcpServerKind, DhcpSettings, render_settings
from sender.netboot.serve.boot_files import ServiceAddress

SETTINGS = DhcpSettings(ServiceAddress(IPv4Address("10.0.0.2")))
SECURE = DhcpSettings(SETTINGS.service, secure_boot=True)


@pytest.mark.parametrize("kind", DhcpServerKind)
def test_every_server_gets_all_rules_and_ipxe_gets_its_script(kind: DhcpServerKind) -> None:
    text = render_settings(kind, SETTINGS)
    assert "http://10.0.0.2:8069/boot.ipxe" in text
    assert "10.0.0.2" in text
    for file in ("undionly.kpxe", "snponly.efi", "snponly-arm64.efi", "http://10.0.0.2:8069/snponly.efi"):
        assert file in text
    assert "HTTPClient" in text
    assert "shimx64.efi" not in text
    assert text.isascii()
    assert text.endswith("\n")


@pytest.mark.parametrize("kind", DhcpServerKind)
def test_secure_boot_gets_the_shim_and_the_servers_address(kind: DhcpServerKind) -> None:
    """Shim and GRUB find their server by next-server only."""
    text = render_settings(kind, SECURE)
    assert "shimx64.efi" in text
    assert not re.search(r"(?<!-)snponly\.efi", text)


@pytest.mark.parametrize("kind", [DhcpServerKind.DNSMASQ, DhcpServerKind.OPENWRT])
@pytest.mark.parametrize("settings", [SETTINGS, SECURE], ids=["plain", "secure"])
def test_dnsmasq_accepts_its_lines(kind: DhcpServerKind, settings: DhcpSettings, tmp_path: Path) -> None:
    dnsmasq = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin")
    if dnsmasq is None:
        pytest.skip("dnsmasq isn't installed")
    config = tmp_path / "diskcast.conf"
    config.write_text(render_settings(kind, settings))
    done = subprocess.run(
        [dnsmasq, "--test", f"--conf-file={config}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_kea_gets_json_whose_classes_exclude_ipxe() -> None:
    text = render_settings(DhcpServerKind.KEA, SETTINGS)
    comment, _, document = text.partition("\n")
    assert comment.startswith("//")
    classes = json.loads(document)["client-classes"]
    assert classes[0]["name"] == "diskcast-ipxe"
    for entry in classes[1:]:
        assert entry["test"].startswith("not member('diskcast-ipxe') and (")


def test_isc_blocks_are_balanced() -> None:
    text = render_settings(DhcpServerKind.ISC, SETTINGS)
    assert text.count("{") == text.count("}") == 6
    assert text.index('"iPXE"') < text.index("undionly.kpxe")


def test_windows_puts_ipxe_first() -> None:
    text = render_settings(DhcpServerKind.WINDOWS, SETTINGS)
    assert "-UserClass EQ,'diskcast iPXE' -ProcessingOrder 1" in text
    assert "-VendorClass EQ,'diskcast UEFI x64*','diskcast UEFI x64 2*'" in text
    assert "-Data 'PXEClient:Arch:00009'" in text


def test_mikrotik_puts_ipxe_first() -> None:
    lines = render_settings(DhcpServerKind.MIKROTIK, SETTINGS).splitlines()
    matchers = [line for line in lines if " matcher add " in line]
    assert 'value="iPXE"' in matchers[0]
    named = re.findall(r"^(/\S.*) add name=(\S+)", "\n".join(lines), re.MULTILINE)
    assert len(named) == len(set(named)) > 20
