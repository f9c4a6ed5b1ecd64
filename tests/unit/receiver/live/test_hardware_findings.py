"""Hardware findings: if these fail, a technician in front of a dead machine gets no reason, or a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from receiver.hardware.pci_devices import PciDevice, read_pci_devices
from receiver.live.hardware_findings import (
    FINDINGS_MAX,
    find_missing_drivers,
    find_missing_firmware,
    modules_for,
    read_findings,
    read_kernel_log,
)

ALIASES = """\
# Aliases extracted from modules themselves.
alias pci:v00008086d000015FAsv*sd*bc*sc*i* e1000e
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
alias pci:v*d*sv*sd*bc01sc06i01* ahci
alias usb:v0BDAp8153d*dc*dsc*dp*ic*isc*ip*in* r8152
"""
E1000E = "pci:v00008086d000015FAsv00001028sd00000A36bc02sc00i00"
UNKNOWN = "pci:v000010ECd00008125sv00001028sd00000A36bc02sc00i00"


def device(modalias: str, class_code: int = 0x020000, *, driver: str = "") -> PciDevice:
    vendor, number = modalias[9:13].lower(), modalias[18:22].lower()
    return PciDevice("0000:00:1f.6", f"{vendor}:{number}", class_code, modalias, driver)


def test_a_network_card_without_a_driver_is_named_by_its_id() -> None:
    assert find_missing_drivers([device(UNKNOWN)], ALIASES.splitlines()) == [
        "no driver for network card PCI 10ec:8125"
    ]


def test_a_card_that_its_driver_refuses_is_another_finding() -> None:
    assert find_missing_drivers([device(E1000E)], ALIASES.splitlines()) == [
        "driver e1000e doesn't accept network card PCI 8086:15fa"
    ]


def test_a_disk_controller_is_recognised_by_its_class() -> None:
    raid = "pci:v00008086d00009A0Bsv00001028sd00000A36bc01sc04i00"
    sata = "pci:v00008086d0000A102sv00001028sd00000A36bc01sc06i01"
    assert find_missing_drivers([device(raid, 0x010400), device(sata, 0x010601)], ALIASES.splitlines()) == [
        "no driver for disk controller PCI 8086:9a0b",
        "driver ahci doesn't accept disk controller PCI 8086:a102",
    ]


def test_devices_that_receive_no_image_are_no_finding() -> None:
    graphics, wireless = 0x030000, 0x028000
    devices = [device(UNKNOWN, graphics), device(UNKNOWN, wireless), device(E1000E, driver="e1000e")]
    assert find_missing_drivers(devices, ALIASES.splitlines()) == []


def test_ten_equal_cards_are_one_line() -> None:
    assert len(find_missing_drivers([device(UNKNOWN)] * 10, [])) == 1


def test_patterns_of_other_buses_dont_match() -> None:
    assert modules_for("usb:v0BDAp8153d3000dc00dsc00dp00icFFiscFFip00in00", ALIASES.splitlines()) == []
    assert modules_for("pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00", ALIASES.splitlines()) == [
        "virtio_pci"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "r8169 0000:02:00.0: firmware: failed to load rtl_nic/rtl8168g-2.fw (-2)",
        "r8169 0000:02:00.0: Direct firmware load for rtl_nic/rtl8168g-2.fw failed with error -2",
    ],
)
def test_missing_firmware_is_named_in_the_words_of_both_kernels(line: str) -> None:
    assert find_missing_firmware(["usb 1-1: new device", line, line]) == [
        "firmware rtl_nic/rtl8168g-2.fw missing for r8169 0000:02:00.0"
    ]


def test_a_kernel_log_without_such_lines_has_no_finding() -> None:
    assert find_missing_firmware(["r8169 0000:02:00.0: firmware: direct-loading firmware rtl_nic/x.fw"]) == []


def pci_folder(root: Path, address: str, *, vendor: str, number: str, code: str, driver: bool) -> None:
    folder = root / "bus/pci/devices" / address
    folder.mkdir(parents=True)
    for name, text in {"vendor": vendor, "device": number, "class": code, "modalias": UNKNOWN}.items():
        (folder / name).write_text(f"{text}\n")
    if driver:
        (root / "bus/pci/drivers/e1000e").mkdir(parents=True)
        (folder / "driver").symlink_to(root / "bus/pci/drivers/e1000e")


def test_devices_are_read_from_sysfs(tmp_path: Path) -> None:
    pci_folder(tmp_path, "0000:02:00.0", vendor="0x10ec", number="0x8125", code="0x020000", driver=False)
    pci_folder(tmp_path, "0000:01:00.0", vendor="0x8086", number="0x15fa", code="0x020000", driver=True)
    first, second = read_pci_devices(tmp_path)
    assert (first.address, first.id_text, first.driver) == ("0000:01:00.0", "8086:15fa", "e1000e")
    assert (second.id_text, second.class_code, second.driver) == ("10ec:8125", 0x020000, "")
    assert read_pci_devices(tmp_path / "missing") == []


def test_records_of_the_kernel_are_read_without_their_prefix(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_bytes(
        b"3,501,5140900,-;r8169 0000:02:00.0: firmware: failed to load a.fw (-2)\n SUBSYSTEM=pci\n"
    )
    assert read_kernel_log(log) == ["r8169 0000:02:00.0: firmware: failed to load a.fw (-2)"]
    assert read_kernel_log(tmp_path / "missing") == []


def test_a_machine_with_many_findings_still_shows_the_screen(tmp_path: Path) -> None:
    for number in range(FINDINGS_MAX + 5):
        address = f"0000:{number:02x}:00.0"
        pci_folder(
            tmp_path, address, vendor="0x10ec", number=f"0x{number:04x}", code="0x020000", driver=False
        )
    assert len(read_findings(tmp_path, tmp_path / "missing")) == FINDINGS_MAX
