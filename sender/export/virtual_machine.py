"""A virtual machine on a throw-away overlay of an image: QEMU, with the image's disk over NBD."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from protocol.constants import MIB
from protocol.disk.disk_layout import layout_of
from protocol.disk.partition_table import EFI_SYSTEM_TYPES
from protocol.errors import ConfigurationError, ImageDamagedError, MissingDependencyError, StorageError
from protocol.image.manifest import Manifest
from protocol.program.system_tools import find_tool
from sender.export.accelerator import Accelerator, find_accelerator
from sender.export.nbd_server import NbdServer
from sender.export.qemu_export import QEMU_IMG, require_qemu_img
from sender.imaging.image_file import ImageFile

QEMU_SYSTEM: Final = "qemu-system-x86_64"
QEMU_SYSTEM_PACKAGE: Final = "qemu-system-x86"
GUI_PACKAGE: Final = "qemu-system-gui"
OVMF_PACKAGE: Final = "ovmf"
OVMF_CODE: Final = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARIABLES: Final = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

MEMORY_BYTES_DEFAULT: Final = 2048 * MIB
MEMORY_BYTES_MIN: Final = 64 * MIB
CPUS_DEFAULT: Final = 2
CPUS_MAX: Final = 64
_OVERLAY_FOLDER: Final = Path("/var/tmp")  # noqa: S108  the file has no name
"""The overlay grows with everything that the guest writes; /tmp is often in memory."""

_HELP_TIMEOUT_S: Final = 30.0
_CREATE_TIMEOUT_S: Final = 60.0
_END_TIMEOUT_S: Final = 10.0


class VmFirmware(enum.StrEnum):
    """Firmware of the virtual machine."""

    BIOS = "bios"
    UEFI = "uefi"


class DiskModel(enum.StrEnum):
    """The disk's controller in the virtual machine."""

    SATA = "sata"
    VIRTIO = "virtio"
    NVME = "nvme"


_DEVICES: Final = {DiskModel.SATA: "ide-hd", DiskModel.VIRTIO: "virtio-blk-pci", DiskModel.NVME: "nvme"}


@dataclasses.dataclass(frozen=True, slots=True)
class VmOptions:
    """Options of the operator; None for a choice by the image's layout."""

    memory_bytes: int = MEMORY_BYTES_DEFAULT
    cpu_count: int = CPUS_DEFAULT
    firmware: VmFirmware | None = None
    disk_model: DiskModel | None = None
    serial: bool = False
    """The serial console in this terminal instead of a window."""
    network: bool = False
    """A network card behind address translation; none by default, since an image in its old role may do anything."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Files:
    """Descriptors that QEMU inherits."""

    disk: int
    overlay: int
    variables: int | None


def firmware_for(manifest: Manifest) -> VmFirmware:
    """Return UEFI if the disk has an EFI system partition, else BIOS."""
    layout = layout_of(manifest.metadata)
    has_loaders = layout is not None and any(part.type in EFI_SYSTEM_TYPES for part in layout.partitions)
    return VmFirmware.UEFI if has_loaders else VmFirmware.BIOS


def sector_bytes_of(manifest: Manifest) -> int:
    """Return the logical sector size that the disk must have: that of its table, or of its source."""
    layout = layout_of(manifest.metadata)
    if layout is not None and layout.partitions:
        return layout.sector_bytes
    value = manifest.metadata.get("logical_sector_bytes", 512)
    return value if isinstance(value, int) else 512


def run_virtual_machine(
    image: ImageFile,
    options: VmOptions,
    *,
    on_start: Callable[[VmFirmware, Accelerator], None] = lambda *_: None,
    on_damage: Callable[[int, str], None] = lambda _block, _message: None,
) -> None:
    """Run a virtual machine on an image until it is switched off; nothing is written to the image.

    Raises:
        ConfigurationError: an option is out of its range, or there is no display.
        MissingDependencyError: QEMU or its firmware isn't installed; the message names the package.
        ImageDamagedError: the guest read a damaged block.
        StorageError: there is no space for the overlay, or QEMU failed.
    """
    manifest = image.manifest
    _check_options(options)
    qemu = _require_qemu()
    if not options.serial:
        _require_display(qemu)
    firmware = options.firmware or firmware_for(manifest)
    with contextlib.ExitStack() as stack:
        overlay = stack.enter_context(_overlay(manifest.raw_bytes))
        variables = stack.enter_context(_uefi_variables()) if firmware is VmFirmware.UEFI else None
        accelerator = find_accelerator(qemu)
        on_start(firmware, accelerator)
        damage: list[str] = []

        def note_damage(block: int, message: str) -> None:
            damage.append(message)
            on_damage(block, message)

        server = stack.enter_context(NbdServer(image, on_damage=note_damage))

        def command(disk_fd: int) -> list[str]:
            files = _Files(disk_fd, overlay.fileno(), None if variables is None else variables.fileno())
            return [qemu, *_arguments(manifest, options, firmware, accelerator, files)]

        inherited = [overlay.fileno(), *([] if variables is None else [variables.fileno()])]
        code = asyncio.run(_run(server, command, inherited))
    if damage:
        raise ImageDamagedError(f"the guest read damaged blocks: {damage[0]}")
    if code not in (0, -signal.SIGTERM):
        raise StorageError(f"QEMU ended with code {code}; its message is above")


def _check_options(options: VmOptions) -> None:
    if options.memory_bytes < MEMORY_BYTES_MIN:
        raise ConfigurationError(f"--memory must be at least {MEMORY_BYTES_MIN // MIB} MiB")
    if not 1 <= options.cpu_count <= CPUS_MAX:
        raise ConfigurationError(f"--cpus can't be {options.cpu_count}: choose 1 to {CPUS_MAX}")


def _require_qemu() -> str:
    require_qemu_img()
    qemu = find_tool(QEMU_SYSTEM)
    if qemu is None:
        raise MissingDependencyError(f"{QEMU_SYSTEM} isn't installed: apt install {QEMU_SYSTEM_PACKAGE}")
    return qemu


def _require_display(qemu: str) -> None:
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ConfigurationError(
            "there is no display for the machine's window: run this on a desktop or by ssh -X, or use --serial if the "
            "image has a serial console"
        )
    argv = [qemu, "-display", "help"]
    shown = subprocess.run(argv, capture_output=True, text=True, timeout=_HELP_TIMEOUT_S, check=False).stdout
    if "gtk" not in shown.split():
        raise MissingDependencyError(
            f"QEMU has no window here: apt install {GUI_PACKAGE}, or use --serial if the image has a serial console"
        )


@contextlib.contextmanager
def _overlay(raw_bytes: int) -> Iterator[IO[bytes]]:
    """Create an empty qcow2 file without a name, which vanishes with its last user whatever happens."""
    folder = Path(os.environ.get("TMPDIR", _OVERLAY_FOLDER))
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed below
    except OSError as error:
        raise StorageError(
            f"{folder}: can't create the overlay: {error.strerror}; set TMPDIR to a folder with space"
        ) from error
    with file:
        fd = file.fileno()
        argv = [QEMU_IMG, "create", "-q", "-f", "qcow2", f"/proc/self/fd/{fd}", str(raw_bytes)]
        done = subprocess.run(
            argv, capture_output=True, text=True, pass_fds=(fd,), timeout=_CREATE_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise StorageError(f"{folder}: can't create the overlay: {done.stderr.strip()}")
        yield file


@contextlib.contextmanager
def _uefi_variables() -> Iterator[IO[bytes]]:
    """Create the machine's own copy of the firmware's variables."""
    if not (OVMF_CODE.exists() and OVMF_VARIABLES.exists()):
        raise MissingDependencyError(
            f"the image boots by UEFI, and {OVMF_CODE} is missing: apt install {OVMF_PACKAGE}"
        )
    with tempfile.TemporaryFile() as file, OVMF_VARIABLES.open("rb") as template:
        shutil.copyfileobj(template, file)
        file.flush()
        yield file


def _arguments(
    manifest: Manifest, options: VmOptions, firmware: VmFirmware, accelerator: Accelerator, files: _Files
) -> list[str]:
    """Return the arguments of QEMU."""
    argv = [
        *("-nodefaults", "-no-user-config", "-name", "diskcast vm"),
        *("-accel", accelerator, "-cpu", "host" if accelerator is Accelerator.KVM else "max"),
        *("-m", str(options.memory_bytes // MIB), "-smp", str(options.cpu_count)),
        # A guest that takes over QEMU starts no program and gains no privilege.
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-blockdev", f"driver=nbd,node-name=image,read-only=on,server.type=fd,server.str={files.disk}"),
        *("-blockdev", f"driver=file,node-name=file,filename=/proc/self/fd/{files.overlay}"),
        *("-blockdev", "driver=qcow2,node-name=disk,file=file,backing=image"),
        *("-device", _disk_device(manifest, options)),
    ]
    # Without a screen SeaBIOS has its console on the serial port.
    argv += ["-M", "q35,graphics=off" if options.serial and firmware is VmFirmware.BIOS else "q35"]
    if firmware is VmFirmware.UEFI:
        argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={OVMF_CODE}"]
        argv += ["-drive", f"if=pflash,format=raw,file=/proc/self/fd/{files.variables}"]
    if options.serial:
        argv += ["-display", "none", "-serial", "mon:stdio"]
    else:
        argv += ["-display", "gtk", "-vga", "std", "-device", "qemu-xhci", "-device", "usb-tablet"]
    argv += ["-nic", "user,model=e1000e"] if options.network else ["-nic", "none"]
    return argv


def _disk_device(manifest: Manifest, options: VmOptions) -> str:
    sector_bytes = sector_bytes_of(manifest)
    # Every system has a driver for SATA, whose disks have sectors of 512 bytes in QEMU.
    model = options.disk_model or (DiskModel.SATA if sector_bytes == 512 else DiskModel.NVME)
    device = f"{_DEVICES[model]},drive=disk,bootindex=0,serial=diskcast"
    if sector_bytes != 512:
        if model is DiskModel.SATA:
            raise ConfigurationError(
                f"the image's disk has sectors of {sector_bytes} bytes, which a SATA disk of QEMU can't have: choose "
                "--disk nvme or --disk virtio"
            )
        device += f",logical_block_size={sector_bytes},physical_block_size={sector_bytes}"
    return device


async def _run(server: NbdServer, command: Callable[[int], list[str]], inherited: list[int]) -> int:
    """Run QEMU until it ends and return its exit code; a signal to this process switches the machine off."""
    ours, theirs = socket.socketpair()
    with contextlib.closing(theirs):
        reader, writer = await asyncio.open_connection(sock=ours)
        serving = asyncio.ensure_future(server.serve(reader, writer))
        # Its standard streams are this terminal's: the serial console.
        process = await asyncio.create_subprocess_exec(
            *command(theirs.fileno()), pass_fds=(theirs.fileno(), *inherited)
        )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _terminate, process)
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            _terminate(process)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _END_TIMEOUT_S)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def _terminate(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
