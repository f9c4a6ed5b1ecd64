"""Settings by which a foreign DHCP server names the boot files of a boot service. Pure.

All servers get the same rules, in this order: iPXE gets the boot script, and each kind of firmware its loader with the
address of the TFTP server. Without the first rule, iPXE would load itself again and again.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Final

from sender.netboot.medium import Loader
from sender.netboot.serve.boot_files import IPXE_SCRIPT, ServiceAddress
from sender.netboot.serve.dhcp_codec import ClientArchitecture


class DhcpServerKind(enum.StrEnum):
    """DHCP servers whose settings can be printed."""

    DNSMASQ = "dnsmasq"
    ISC = "isc"
    KEA = "kea"
    WINDOWS = "windows"
    MIKROTIK = "mikrotik"
    OPENWRT = "openwrt"


@dataclasses.dataclass(frozen=True, slots=True)
class FirmwareRule:
    """The boot file of one kind of firmware.

    Attributes:
        key: short name in settings.
        title: name for people.
        architectures: values of option 93.
        file: file name for TFTP, or URL.
        http: the firmware boots by HTTP.
    """

    key: str
    title: str
    architectures: tuple[ClientArchitecture, ...]
    file: str
    http: bool = False

    @property
    def vendor_classes(self) -> tuple[str, ...]:
        """Return the starts of option 60 by which the firmware is recognised, too."""
        client = "HTTPClient" if self.http else "PXEClient"
        return tuple(f"{client}:Arch:{architecture:05d}" for architecture in self.architectures)


@dataclasses.dataclass(frozen=True, slots=True)
class DhcpSettings:
    """Answers that a DHCP server has to give.

    Attributes:
        service: address of the boot service.
        secure_boot: UEFI machines get Debian's signed shim and GRUB.
    """

    service: ServiceAddress
    secure_boot: bool = False

    @property
    def script_url(self) -> str:
        """Return the URL for iPXE."""
        return f"{self.service.http_url}/{IPXE_SCRIPT}"

    @property
    def rules(self) -> tuple[FirmwareRule, ...]:
        """Return the boot files of all firmware."""
        x64 = PurePosixPath(Loader.SHIM if self.secure_boot else Loader.UEFI).name
        arm64 = PurePosixPath(Loader.UEFI_ARM64).name
        arch = ClientArchitecture
        url = self.service.http_url
        return (
            FirmwareRule("bios", "BIOS", (arch.BIOS,), PurePosixPath(Loader.BIOS).name),
            FirmwareRule("uefi", "UEFI x64", (arch.UEFI_X64_EBC, arch.UEFI_X64), x64),
            FirmwareRule("uefi-http", "UEFI x64 HTTP", (arch.UEFI_X64_HTTP,), f"{url}/{x64}", http=True),
            FirmwareRule("arm64", "UEFI ARM64", (arch.UEFI_ARM64,), arm64),
            FirmwareRule(
                "arm64-http", "UEFI ARM64 HTTP", (arch.UEFI_ARM64_HTTP,), f"{url}/{arm64}", http=True
            ),
        )


def render_settings(kind: DhcpServerKind, settings: DhcpSettings) -> str:
    """Return the settings for a DHCP server, with comments that say where they belong."""
    return _RENDERERS[kind](settings)


def _dnsmasq(settings: DhcpSettings) -> str:
    return _text(
        "# dnsmasq: save as /etc/dnsmasq.d/diskcast.conf, then: systemctl restart dnsmasq",
        *_dnsmasq_lines(settings),
    )


def _openwrt(settings: DhcpSettings) -> str:
    return _text(
        "# OpenWrt: append these lines to /etc/dnsmasq.conf, then: service dnsmasq restart",
        *_dnsmasq_lines(settings),
    )


def _dnsmasq_lines(settings: DhcpSettings) -> list[str]:
    lines = ["dhcp-match=set:diskcast-ipxe,175"]
    lines += [
        f"dhcp-match=set:diskcast-{rule.key},option:client-arch,{architecture:d}"
        for rule in settings.rules
        for architecture in rule.architectures
    ]
    lines.append(f"dhcp-boot=tag:diskcast-ipxe,{settings.script_url}")
    for rule in settings.rules:
        tags = f"tag:!diskcast-ipxe,tag:diskcast-{rule.key}"
        if rule.http:
            lines.append(f"dhcp-option-force={tags},option:vendor-class,HTTPClient")
            lines.append(f"dhcp-boot={tags},{rule.file}")
        else:
            lines.append(f"dhcp-boot={tags},{rule.file},,{settings.service.address}")
    return lines


def _isc(settings: DhcpSettings) -> str:
    blocks = [
        f'if exists user-class and option user-class = "iPXE" {{\n  filename "{settings.script_url}";\n}}'
    ]
    for rule in settings.rules:
        condition = " or ".join(
            f"option diskcast-architecture = 00:{architecture:02x}" for architecture in rule.architectures
        )
        if rule.http:
            body = f'  option vendor-class-identifier "HTTPClient";\n  filename "{rule.file}";'
        else:
            body = f'  next-server {settings.service.address};\n  filename "{rule.file}";'
        blocks.append(f"elsif {condition} {{\n{body}\n}}")
    return _text(
        "# ISC dhcpd: put this into /etc/dhcp/dhcpd.conf, outside of all subnets or inside of one, then:",
        "# systemctl restart isc-dhcp-server",
        "option diskcast-architecture code 93 = unsigned integer 16;",
        " ".join(blocks),
    )


def _kea(settings: DhcpSettings) -> str:
    classes: list[dict[str, object]] = [
        {
            "name": "diskcast-ipxe",
            "test": "substring(option[77].hex,0,4) == 'iPXE'",
            "boot-file-name": settings.script_url,
        }
    ]
    for rule in settings.rules:
        architectures = " or ".join(
            f"option[93].hex == 0x{architecture:04x}" for architecture in rule.architectures
        )
        entry: dict[str, object] = {
            "name": f"diskcast-{rule.key}",
            "test": f"not member('diskcast-ipxe') and ({architectures})",
            "boot-file-name": rule.file,
        }
        if rule.http:
            entry["option-data"] = [{"name": "vendor-class-identifier", "data": "HTTPClient"}]
        else:
            entry["next-server"] = str(settings.service.address)
        classes.append(entry)
    document = json.dumps({"client-classes": classes}, indent=2)
    return _text(
        '// Kea: merge this into "Dhcp4" of /etc/kea/kea-dhcp4.conf, then: systemctl restart kea-dhcp4-server',
        document,
    )


def _windows(settings: DhcpSettings) -> str:
    ipxe, script, first = "diskcast iPXE", settings.script_url, "-ProcessingOrder 1"
    lines = [
        "# Windows DHCP Server: run in PowerShell as an administrator, on the DHCP server.",
        "# Enter the network of the machines here:",
        "$scope = '192.0.2.0'",
        f"$server = '{settings.service.address}'",
        "",
        f"Add-DhcpServerv4Class -Name '{ipxe}' -Type User -Data 'iPXE'",
        f"Add-DhcpServerv4Policy -Name '{ipxe}' -ScopeId $scope -Condition Or -UserClass EQ,'{ipxe}' {first}",
        f"Set-DhcpServerv4OptionValue -ScopeId $scope -PolicyName '{ipxe}' -OptionId 67 -Value '{script}'",
    ]
    if any(rule.http for rule in settings.rules):
        lines.append(
            "Add-DhcpServerv4OptionDefinition -OptionId 60 -Name 'Vendor class' -Type String "
            "-ErrorAction SilentlyContinue"
        )
    for rule in settings.rules:
        name = f"diskcast {rule.title}"
        classes = [name if index == 0 else f"{name} {index + 1}" for index in range(len(rule.vendor_classes))]
        lines.append("")
        lines += [
            f"Add-DhcpServerv4Class -Name '{each}' -Type Vendor -Data '{data}'"
            for each, data in zip(classes, rule.vendor_classes, strict=True)
        ]
        conditions = ",".join(f"'{each}*'" for each in classes)
        lines.append(
            f"Add-DhcpServerv4Policy -Name '{name}' -ScopeId $scope -Condition Or -VendorClass EQ,{conditions}"
        )
        option = f"Set-DhcpServerv4OptionValue -ScopeId $scope -PolicyName '{name}'"
        if rule.http:
            lines.append(f"{option} -OptionId 60 -Value 'HTTPClient'")
        else:
            lines.append(f"{option} -OptionId 66 -Value $server")
        lines.append(f"{option} -OptionId 67 -Value '{rule.file}'")
    return _text(*lines)


def _mikrotik(settings: DhcpSettings) -> str:
    lines = [
        "# MikroTik RouterOS 7.16 or later: paste into a terminal.",
        "# Enter the names of the DHCP server and of its address pool (/ip dhcp-server print) here:",
        ":local server dhcp1",
        ":local pool pool1",
    ]

    def add(key: str, options: Mapping[int, str], code: int, values: tuple[str, ...]) -> None:
        names = []
        for option, value in options.items():
            names.append(f"diskcast-{key}-{option}")
            lines.append(f"/ip dhcp-server option add name={names[-1]} code={option} value=\"s'{value}'\"")
        lines.append(f"/ip dhcp-server option sets add name=diskcast-{key} options={','.join(names)}")
        for index, value in enumerate(values):
            suffix = "" if index == 0 else f"-{index + 1}"
            lines.append(
                f"/ip dhcp-server matcher add name=diskcast-{key}{suffix} server=$server address-pool=$pool "
                f'code={code} value="{value}" matching-type=substring option-set=diskcast-{key}'
            )

    # The first matcher that fits counts, so iPXE's comes before those of the firmware.
    add("ipxe", {67: settings.script_url}, 77, ("iPXE",))
    for rule in settings.rules:
        first = {60: "HTTPClient"} if rule.http else {66: str(settings.service.address)}
        add(rule.key, {**first, 67: rule.file}, 60, rule.vendor_classes)
    lines.append(f"/ip dhcp-server network set [find] next-server={settings.service.address}")
    return _text(*lines)


def _text(*lines: str) -> str:
    return "\n".join(lines) + "\n"


_RENDERERS: Final[Mapping[DhcpServerKind, Callable[[DhcpSettings], str]]] = {
    DhcpServerKind.DNSMASQ: _dnsmasq,
    DhcpServerKind.ISC: _isc,
    DhcpServerKind.KEA: _kea,
    DhcpServerKind.WINDOWS: _windows,
    DhcpServerKind.MIKROTIK: _mikrotik,
    DhcpServerKind.OPENWRT: _openwrt,
}
