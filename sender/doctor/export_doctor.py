"""Check the programs of other projects that `export`, `vm` and imports of virtual disks run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from protocol.program.findings import Finding, ok, warn
from protocol.program.system_tools import find_tool
from sender.export.qemu_export import PACKAGE, QEMU_IMG
from sender.export.virtual_machine import OVMF_CODE, OVMF_PACKAGE, QEMU_SYSTEM, QEMU_SYSTEM_PACKAGE


def judge_exports(
    find: Callable[[str], str | None] = find_tool, ovmf_code: Path = OVMF_CODE
) -> list[Finding]:
    """Return one finding each for virtual disks and virtual machines; casts need none of the programs."""
    check = "virtual disks"
    if find(QEMU_IMG) is None:
        detail = f"{QEMU_IMG} isn't installed: no qcow2, VMDK, VHDX, VHD and VDI, neither packed nor exported"
        return [warn(check, detail, f"apt install {PACKAGE}")]
    findings = [ok(check, f"{QEMU_IMG} packs and exports qcow2, VMDK, VHDX, VHD and VDI")]
    check = "virtual machines"
    if find(QEMU_SYSTEM) is None:
        detail = f"{QEMU_SYSTEM} isn't installed: `diskcast vm` can't start"
        findings.append(warn(check, detail, f"apt install {QEMU_SYSTEM_PACKAGE} {OVMF_PACKAGE}"))
    elif not ovmf_code.exists():
        detail = "`diskcast vm` starts images for BIOS only"
        findings.append(warn(check, detail, f"apt install {OVMF_PACKAGE}"))
    else:
        findings.append(ok(check, "`diskcast vm` starts images for BIOS and UEFI"))
    return findings
