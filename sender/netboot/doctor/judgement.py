"""Findings about a network's boots: facts in, sentences with their fixes out. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Final

from protocol.program.findings import Finding, fail, ok, warn
from sender.netboot.doctor.wire_watch import MachineTrace
from sender.netboot.serve.boot_files import ARM64_ARCHITECTURES
from sender.netboot.serve.dhcp_codec import ClientArchitecture, DhcpMessage, Option

LATE_DISCOVER_S: Final = 4
"""Firmware asks at once, and counts the seconds since then; a port that forwards at once shows 0."""
_PRINT_CONFIG: Final = (
    "diskcast netboot print-config DHCP_SERVER --address {address}, where DHCP_SERVER is dnsmasq, isc, kea, windows, "
    "mikrotik or openwrt"
)


@dataclasses.dataclass(frozen=True, slots=True)
class NetworkFacts:
    """The network that was watched.

    Attributes:
        interface_name: this machine's interface.
        address: its address there.
        seconds: time of watching.
        dhcp_offers: offers of the network's DHCP servers to a UEFI machine that boots, one each.
    """

    interface_name: str
    address: IPv4Address
    seconds: float
    dhcp_offers: Sequence[DhcpMessage]


def judge_network(facts: NetworkFacts) -> list[Finding]:
    """Judge the DHCP servers."""
    check = f"DHCP on {facts.interface_name}"
    servers = [_server(offer) for offer in facts.dhcp_offers]
    if not servers:
        fix = (
            "connect this interface to the network with the DHCP server; on an isolated network: diskcast netboot "
            f"serve DIR --interface {facts.interface_name} --mode dhcp"
        )
        return [warn(check, "no DHCP server answers", fix)]
    if len(servers) > 1:
        fix = f"switch one of them off: {', '.join(servers)}"
        return [warn(check, f"{len(servers)} DHCP servers answer, machines take either", fix)]
    findings = []
    for offer in facts.dhcp_offers:
        file, next_server = offer.boot_file_name, offer.next_server
        if file and str(facts.address) not in (next_server, _host(file)):
            origin = next_server or "itself"
            detail = f"{_server(offer)} names the boot file {file!r} of {origin}: machines load that one"
            fix = f"remove options 66 and 67 there, or set them for this service: {_settings(facts)}"
            findings.append(warn(check, detail, fix))
        elif file:
            findings.append(ok(check, f"{_server(offer)} names the boot file {file!r} of this machine"))
        else:
            findings.append(ok(check, f"{_server(offer)} leases addresses and names no boot file"))
    return findings


def judge_machines(machines: Sequence[MachineTrace], facts: NetworkFacts) -> list[Finding]:
    """Judge the boots."""
    booting = [machine for machine in machines if machine.boots]
    if not booting:
        detail = f"no machine asked for a boot file on {facts.interface_name} within {facts.seconds:.0f} s"
        fix = (
            "switch a machine on, and choose the network (PXE, IPv4) in its boot menu; if it asks and is not seen "
            "here, it is in another VLAN, or a router in between needs this machine as its second DHCP helper address"
        )
        return [warn("booting machines", detail, fix)]
    return [finding for machine in booting for finding in _judge_machine(machine, facts)]


def _judge_machine(machine: MachineTrace, facts: NetworkFacts) -> list[Finding]:
    check = f"boot of {machine.mac}"
    findings = []
    if machine.waited_s >= LATE_DISCOVER_S:
        detail = (
            f"its first question arrived {machine.waited_s} s late: the switch port did not forward before"
        )
        fix = "enable PortFast (edge port) on the switch ports of machines, or disable spanning tree there"
        findings.append(warn(f"switch port of {machine.mac}", detail, fix))
    for judge in _JUDGEMENTS:
        finding = judge(check, machine, facts)
        if finding is not None:
            return [*findings, finding]
    loaded = ", ".join(machine.files) or "by HTTP"
    return [*findings, ok(check, f"{_firmware(machine)}: loads {loaded}")]


def _judge_success(check: str, machine: MachineTrace, _facts: NetworkFacts) -> Finding | None:
    if not machine.ipxe_discovers:
        return None
    return ok(check, f"{_firmware(machine)}: iPXE runs and asks for its script")


def _judge_unsupported(check: str, machine: MachineTrace, _facts: NetworkFacts) -> Finding | None:
    if machine.architecture in (None, *ClientArchitecture) and (
        machine.architecture != ClientArchitecture.UEFI_IA32
    ):
        return None
    fix = (
        "use a machine with x86-64 or ARM64 UEFI, or a BIOS; in its set-up, choose 64-bit UEFI or legacy boot"
    )
    return fail(check, f"the firmware is of architecture {machine.architecture}, without a loader", fix)


def _judge_no_address(check: str, machine: MachineTrace, facts: NetworkFacts) -> Finding | None:
    if machine.requested_server is not None or machine.files or machine.proxy_requests:
        return None
    count = machine.firmware_discovers
    times = "once" if count == 1 else f"{count} times"
    if not facts.dhcp_offers:
        fix = (
            "connect the machine to the network with the DHCP server, or lease addresses: diskcast netboot serve DIR "
            f"--interface {facts.interface_name} --mode dhcp"
        )
        return fail(check, f"{_firmware(machine)}: DISCOVER sent {times}, and no DHCP server answers", fix)
    if facts.address in machine.boot_offers:
        server = _server(facts.dhcp_offers[0])
        detail = (
            f"{_firmware(machine)}: DISCOVER sent {times}, offers ignored: "
            "it takes no boot file from a second server"
        )
        return fail(check, detail, f"set options 66/67 on {server} like this: {_settings(facts)}")
    return _no_boot_offer(check, machine, facts)


def _judge_no_boot_file(check: str, machine: MachineTrace, facts: NetworkFacts) -> Finding | None:
    if machine.files or machine.proxy_requests or _is_http(machine):
        return None
    if not machine.boot_offers:
        return _no_boot_offer(check, machine, facts)
    server = machine.requested_server
    foreign = {own: file for own, file in machine.boot_offers.items() if own != facts.address}
    if foreign:
        own, file = next(iter(foreign.items()))
        detail = (
            f"{_firmware(machine)}: {own} sends it the boot file {file!r}, "
            "which it loads from elsewhere or not at all"
        )
        return fail(check, detail, f"change options 66/67 on {own} like this: {_settings(facts)}")
    detail = f"{_firmware(machine)}: it took its address from {server}, and ignored the boot file of {facts.address}"
    return fail(check, detail, f"set options 66/67 on {server} like this: {_settings(facts)}")


def _judge_proxy_port(check: str, machine: MachineTrace, _facts: NetworkFacts) -> Finding | None:
    if not machine.proxy_requests or machine.proxy_answers or machine.files:
        return None
    detail = f"{_firmware(machine)}: its request to UDP port 4011 got no answer"
    fix = "allow UDP port 4011 in the firewall of the boot service (docs/how-to/firewalls.md)"
    return fail(check, detail, fix)


def _judge_transfer(check: str, machine: MachineTrace, _facts: NetworkFacts) -> Finding | None:
    if not machine.files:
        return None
    file = machine.files[-1]
    if not machine.data_packets:
        if machine.tftp_error:
            detail = f"{_firmware(machine)}: TFTP refused {file!r}: {machine.tftp_error}"
            fix = "name a file of the boot medium in option 67, or install the package ipxe and build the medium again"
        else:
            detail = f"{_firmware(machine)}: asked for {file!r} by TFTP, and got no answer"
            fix = "start diskcast netboot serve, and allow UDP port 69 in its firewall (docs/how-to/firewalls.md)"
        return fail(check, detail, fix)
    if file.rpartition("/")[2] == "snponly.efi":
        detail = f"{_firmware(machine)}: loaded {file!r}, and iPXE did not start: Secure Boot refuses it"
        fix = (
            "start diskcast netboot serve with --secure-boot, or disable Secure Boot in the firmware's set-up"
        )
        return warn(check, detail, fix)
    if file.rpartition("/")[2] == "shimx64.efi":
        detail = f"{_firmware(machine)}: loaded the shim, which did not find GRUB: the DHCP server gives no next-server"
        return fail(check, detail, f"set next-server (siaddr) on the DHCP server: {_PRINT_CONFIG_SECURE}")
    return None


def _no_boot_offer(check: str, machine: MachineTrace, facts: NetworkFacts) -> Finding:
    detail = (
        f"{_firmware(machine)}: it asked {machine.firmware_discovers} times, and nothing offers a boot file"
    )
    fix = (
        f"start diskcast netboot serve DIR --interface {facts.interface_name}, and allow UDP ports 67, 69 and 4011 in "
        "its firewall (docs/how-to/firewalls.md)"
    )
    return fail(check, detail, fix)


_JUDGEMENTS: Final[tuple[Callable[[str, MachineTrace, NetworkFacts], Finding | None], ...]] = (
    _judge_success,
    _judge_unsupported,
    _judge_no_address,
    _judge_no_boot_file,
    _judge_proxy_port,
    _judge_transfer,
)
"""In the order of a boot: the first one that finds something has the cause."""

_PRINT_CONFIG_SECURE: Final = "diskcast netboot print-config DHCP_SERVER --address ADDRESS --secure-boot"
_FIRMWARE: Final = {
    ClientArchitecture.BIOS: "BIOS",
    ClientArchitecture.UEFI_IA32: "32-bit UEFI",
    ClientArchitecture.UEFI_X64_HTTP: "UEFI x64 (HTTP Boot)",
    ClientArchitecture.UEFI_ARM64_HTTP: "UEFI ARM64 (HTTP Boot)",
}


def _firmware(machine: MachineTrace) -> str:
    architecture = machine.architecture or 0
    if architecture in set(ClientArchitecture):
        known = ClientArchitecture(architecture)
        return _FIRMWARE.get(known, "UEFI ARM64" if known in ARM64_ARCHITECTURES else "UEFI x64")
    return f"architecture {architecture}"


def _is_http(machine: MachineTrace) -> bool:
    return machine.architecture in (ClientArchitecture.UEFI_X64_HTTP, ClientArchitecture.UEFI_ARM64_HTTP)


def _server(offer: DhcpMessage) -> str:
    return str(offer.address_option(Option.SERVER_IDENTIFIER) or "an unnamed server")


def _host(file: str) -> str:
    return file.partition("://")[2].partition("/")[0].partition(":")[0]


def _settings(facts: NetworkFacts) -> str:
    return _PRINT_CONFIG.format(address=facts.address)
