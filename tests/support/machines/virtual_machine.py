"""A virtual PC in QEMU: firmware, disks, network cards and boot order as a test needs them."""

from __future__ import annotations

import dataclasses
import enum
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.machines.accelerator import accelerator
from tests.support.machines.boot_network import BootNetwork
from tests.support.machines.serial_console import SerialConsole
from tests.support.network.lab import LabError, run
from tests.support.programs.processes import require_program

_OVMF: Final = Path("/usr/share/OVMF")
_END_TIMEOUT_S: Final = 20.0
NO_TIMER_CHECK: Final = "no_timer_check"
"""Word of a kernel command line that skips the check of the timer: it fails, and the kernel hangs, if the machine waits
for the host's processor at that moment."""
_SECTOR_READ_BYTES: Final = 4 << 20


class Firmware(enum.StrEnum):
    """The firmware of a machine."""

    BIOS = enum.auto()
    UEFI = enum.auto()
    SECURE_BOOT = enum.auto()
    """UEFI with Microsoft's keys and Secure Boot enforced."""


class BootOrder(enum.StrEnum):
    """The firmware's first choice."""

    DISK = enum.auto()
    NETWORK = enum.auto()
    STICK = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a machine.

    Attributes:
        path: raw file with its content.
        model: QEMU's device: ``virtio-blk-pci``, ``nvme``, ``ide-hd``, ``scsi-hd``.
        serial: serial number that the guest sees.
    """

    path: Path
    model: str = "virtio-blk-pci"
    serial: str = ""

    @classmethod
    def blank(
        cls, path: Path, size_bytes: int = 2 << 30, *, model: str = "virtio-blk-pci", serial: str = ""
    ) -> Self:
        """Create a blank disk of ``size_bytes``; it takes no space on the test's own disk."""
        with path.open("xb") as file:
            file.truncate(size_bytes)
        return cls(path, model, serial)

    def erase(self) -> None:
        """Make it blank again, also while its machine runs but doesn't use it."""
        size_bytes = self.path.stat().st_size
        run("fallocate", "--punch-hole", "--offset", "0", "--length", str(size_bytes), self.path)

    @property
    def is_blank(self) -> bool:
        """Whether it holds nothing but zeros."""
        if self.path.stat().st_blocks == 0:
            return True
        with self.path.open("rb") as file:
            return not any(any(chunk) for chunk in iter(lambda: file.read(_SECTOR_READ_BYTES), b""))


@dataclasses.dataclass(frozen=True, slots=True)
class MachineSpec:
    """The hardware and firmware of a virtual PC.

    Attributes:
        firmware: BIOS, UEFI, or UEFI with Secure Boot.
        disks: its disks; the first one is in the boot order.
        memory_mib: RAM.
        processor: QEMU's ``-cpu``.
        card: QEMU's network card: ``virtio-net-pci``, ``e1000e``, …; empty for none.
        card_options: more properties of the card.
        boot_order: the firmware's first choice; the others follow.
        stick: a file that is plugged in as a USB stick.
        firmware_options: QEMU's ``-fw_cfg``, as ``name=value``.
        uuid: SMBIOS system UUID.
        serial: SMBIOS serial number.
        niceness: of QEMU; by default a machine leaves the processor to the programs under test.
        extra: more of QEMU's command line.
    """

    firmware: Firmware = Firmware.BIOS
    disks: tuple[Disk, ...] = ()
    memory_mib: int = 1024
    processor: str = "max"
    card: str = "virtio-net-pci"
    card_options: tuple[str, ...] = ()
    boot_order: BootOrder = BootOrder.DISK
    stick: Path | None = None
    firmware_options: tuple[str, ...] = ()
    uuid: str = ""
    serial: str = ""
    niceness: int = 10
    extra: tuple[str, ...] = ()


class VirtualMachine:
    """A running machine on one tap of a network; a context manager that cuts its power at the end.

    Args:
        network: the network; its folder gets the machine's console log and firmware variables.
        tap_index: the tap, also the last byte of the MAC address.
        spec: hardware and firmware.
        name: of the log.
        keep_variables: start with the firmware variables of the previous machine of this name, as the same PC does.

    Attributes:
        variables: flash image with the variables of UEFI firmware.
    """

    def __init__(
        self,
        network: BootNetwork,
        tap_index: int,
        spec: MachineSpec,
        *,
        name: str = "",
        keep_variables: bool = False,
    ) -> None:
        self.name = name or f"vm{tap_index}"
        self.mac = mac_of(tap_index)
        self._spec = spec
        self.variables = network.folder / f"{self.name}.variables"
        if not (keep_variables and self.variables.exists()):
            self.variables.unlink(missing_ok=True)
        argv = [*network.lan_prefix, "nice", "-n", str(spec.niceness), *self._command(tap_index)]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, process_group=0
        )
        self.console = SerialConsole(self._process, self.name, network.folder / f"{self.name}.console.log")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_off(self, timeout_s: float) -> None:
        """Wait until the machine has switched itself off.

        Raises:
            LabError: it still runs after ``timeout_s``, or QEMU failed.
        """
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LabError(
                f"{self.name} still runs after {timeout_s:g} s; {self.console.describe()}"
            ) from None
        if code:
            raise LabError(f"QEMU of {self.name} ended with {code}: {self._complaints()}")

    def close(self) -> None:
        """Cut the power."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.console.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    def _complaints(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace").strip()

    def _command(self, tap_index: int) -> list[str]:
        spec = self._spec
        argv = [
            str(require_program("qemu-system-x86_64")),
            *("-accel", accelerator(), "-cpu", spec.processor, "-smp", "1", "-m", str(spec.memory_mib)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-monitor", "none"),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-device", "virtio-rng-pci"),
            *self._firmware(),
        ]
        order = [choice for choice in BootOrder if choice is not spec.boot_order]
        rank = {choice: index for index, choice in enumerate([spec.boot_order, *order], 1)}
        if spec.card:
            tap = f"tap,id=lan,ifname=tap{tap_index},script=no,downscript=no,vhost=off"
            card = (f"{spec.card},netdev=lan,mac={self.mac}", f"bootindex={rank[BootOrder.NETWORK]}")
            argv += ["-netdev", tap, "-device", ",".join((*card, *spec.card_options))]
        if any(disk.model == "scsi-hd" for disk in spec.disks):
            argv += ["-device", "virtio-scsi-pci"]
        for index, disk in enumerate(spec.disks):
            drive = f"if=none,id=disk{index},file={disk.path},format=raw,cache=unsafe,discard=unmap"
            device = f"{disk.model},drive=disk{index},serial={disk.serial or f'DISK-{self.name}-{index}'}"
            if index == 0:
                device += f",bootindex={rank[BootOrder.DISK]}"
            argv += ["-drive", drive, "-device", device]
        if spec.stick is not None:
            argv += [
                "-device",
                "qemu-xhci",
                "-drive",
                f"if=none,id=stick,file={spec.stick},format=raw,readonly=on",
            ]
            argv += ["-device", f"usb-storage,drive=stick,removable=on,bootindex={rank[BootOrder.STICK]}"]
        for option in spec.firmware_options:
            name, _, value = option.partition("=")
            argv += ["-fw_cfg", f"name={name},string={value}"]
        if spec.uuid:
            argv += ["-uuid", spec.uuid]
        if spec.serial:
            argv += ["-smbios", f"type=1,serial={spec.serial}"]
        return [*argv, *spec.extra]

    def _firmware(self) -> list[str]:
        if self._spec.firmware is Firmware.BIOS:
            return ["-M", "q35,graphics=off"]  # SeaBIOS then has its console on the serial port
        secure = self._spec.firmware is Firmware.SECURE_BOOT
        code = _OVMF / ("OVMF_CODE_4M.secboot.fd" if secure else "OVMF_CODE_4M.fd")
        variables = _OVMF / ("OVMF_VARS_4M.ms.fd" if secure else "OVMF_VARS_4M.fd")
        if not code.exists():
            raise LabError(f"{code} is missing: apt install ovmf")
        if not self.variables.exists():
            shutil.copy(variables, self.variables)
        argv = ["-M", "q35,smm=on" if secure else "q35"]
        if secure:
            argv += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={code}"]
        return [*argv, "-drive", f"if=pflash,format=raw,file={self.variables}"]


def mac_of(tap_index: int) -> str:
    """Return the MAC address of the machine on a tap."""
    return f"52:54:00:99:00:{tap_index + 1:02x}"
