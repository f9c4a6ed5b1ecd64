"""The boot medium: a directory with the kernel and the live system that machines boot, and its record.

::

    vmlinuz         Debian's kernel with its signature
    initrd          the live system: an uncompressed cpio archive that ends with root.sha256 and root.sqfs
    firmware        firmware for network cards and disk controllers: a second initrd (optional)
    loaders/        boot loaders, by the names under which machines load them
    medium.json     the record: versions, sizes, hashes
    sbom.cdx.json   every Debian package and wheel in it, as CycloneDX

The record is written last: a directory without it is an interrupted build.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from protocol.errors import ConfigurationError

FORMAT: Final = 1
KERNEL: Final = "vmlinuz"
INITRD: Final = "initrd"
FIRMWARE: Final = "firmware"
RECORD: Final = "medium.json"
BILL_OF_MATERIALS: Final = "sbom.cdx.json"

_RECORD_BYTES_MAX: Final = 1 << 20
"""A record has some KiB; anything longer is another file by mistake."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_REBUILD: Final = "build it with `diskcast netboot build -o DIR`"


class Flavour(enum.StrEnum):
    """Debian's kernel in the medium."""

    GENERIC = "generic"
    """The kernel for all machines."""
    CLOUD = "cloud"
    """The kernel for virtual machines: a tenth of the modules."""


class Loader(enum.StrEnum):
    """Path of a boot loader in the medium; the last part is the name under which machines load it."""

    BIOS = "loaders/undionly.kpxe"
    """iPXE for BIOS machines, on the network driver of the card's boot ROM."""
    UEFI = "loaders/snponly.efi"
    """iPXE for UEFI machines, on the firmware's network driver."""
    SHIM = "loaders/shimx64.efi"
    """Debian's shim, signed for Secure Boot; it loads :attr:`GRUB` from where it was loaded itself."""
    GRUB = "loaders/grubx64.efi"
    """Debian's signed GRUB for network boots: it reads its ``grub/grub.cfg`` by TFTP or HTTP."""
    GRUB_DISK = "loaders/disk/grubx64.efi"
    """Debian's signed GRUB for disks and sticks: it reads ``/EFI/debian/grub.cfg``."""
    DISK = "loaders/disk.efi"
    """GRUB for UEFI machines that boot iPXE and have nothing to do: it starts the loader of the disk."""
    UEFI_ARM64 = "loaders/snponly-arm64.efi"
    """iPXE for ARM64 UEFI machines."""


@dataclasses.dataclass(frozen=True, slots=True)
class MediumFile:
    """A file of the medium."""

    size_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True)
class MediumRecord:
    """The content of ``medium.json``.

    Attributes:
        diskcast_version: version of the agent in it.
        architecture: Debian's name, for example ``amd64``.
        suite: the Debian release of its packages.
        kernel_release: as ``uname -r`` shows it.
        root_sha256: SHA-256 of the squashfs at the end of the initrd.
        lock_sha256: SHA-256 of the lock file of its wheels.
        servers: daemons that its agent knows without a command line.
        pins: certificates that its agent accepts; others on a command line are refused, if there are any here.
        trusted_keys: ids of the keys whose images its agent accepts.
        files: every other file of the medium, by path.
        parts_bytes: share of each part in the initrd, largest first.
    """

    diskcast_version: str
    architecture: str
    flavour: Flavour
    suite: str
    kernel_release: str
    root_sha256: str
    lock_sha256: str
    servers: tuple[str, ...]
    pins: tuple[str, ...]
    trusted_keys: tuple[str, ...]
    files: Mapping[str, MediumFile]
    parts_bytes: Mapping[str, int]

    def to_json(self) -> str:
        """Return the text of ``medium.json``."""
        record = {"format": FORMAT, **{name: getattr(self, name) for name in _FIELDS}}
        record["files"] = {name: dataclasses.asdict(file) for name, file in sorted(self.files.items())}
        record["parts_bytes"] = dict(self.parts_bytes)
        return json.dumps(record, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the text of ``medium.json``.

        Raises:
            ValueError: it isn't a record of this format.
        """
        record = json.loads(text)
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f"it isn't a record of format {FORMAT}")
        try:
            files = {name: MediumFile(**file) for name, file in record["files"].items()}
            values = {name: record[name] for name in _FIELDS}
            values |= {name: tuple(record[name]) for name in ("servers", "pins", "trusted_keys")}
            values |= {"flavour": Flavour(record["flavour"]), "files": MappingProxyType(files)}
            values["parts_bytes"] = MappingProxyType(
                {str(k): int(v) for k, v in record["parts_bytes"].items()}
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a field is missing or malformed: {error}") from error
        for name, file in files.items():
            path = Path(name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{name!r} isn't a path in the medium")
            if not isinstance(file.size_bytes, int) or not _SHA256.fullmatch(str(file.sha256)):
                raise ValueError(f"size or SHA-256 of {name} is malformed")
        if not _SHA256.fullmatch(str(values["root_sha256"])):
            raise ValueError("root_sha256 is malformed")
        return cls(**values)


_FIELDS: Final = tuple(field.name for field in dataclasses.fields(MediumRecord))


@dataclasses.dataclass(frozen=True, slots=True)
class BootMedium:
    """A built boot medium."""

    directory: Path
    record: MediumRecord

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a medium, and check that each of its files is there with the recorded size.

        Raises:
            ConfigurationError: there is no complete medium.
        """
        path = directory / RECORD
        try:
            with path.open(encoding="utf-8") as file:
                record = MediumRecord.from_json(file.read(_RECORD_BYTES_MAX))
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"{directory} isn't a boot medium, it has no {RECORD}: {_REBUILD}"
            ) from error
        except OSError as error:
            raise ConfigurationError(f"can't read {path}: {error.strerror}; check its permissions") from error
        except ValueError as error:
            raise ConfigurationError(f"can't use the boot medium {directory}: {error}; {_REBUILD}") from error
        medium = cls(directory, record)
        for name, recorded in record.files.items():
            try:
                size_bytes = (directory / name).stat().st_size
            except OSError as error:
                raise ConfigurationError(f"{directory / name}: {error.strerror}; {_REBUILD} again") from error
            if size_bytes != recorded.size_bytes:
                raise ConfigurationError(
                    f"{directory / name} has {size_bytes} bytes instead of {recorded.size_bytes}: {_REBUILD} again"
                )
        return medium

    def __contains__(self, name: str) -> bool:
        return name in self.record.files

    def path(self, name: str) -> Path:
        """Return the path of a file of the medium.

        Raises:
            ConfigurationError: this medium has no such file.
        """
        if name not in self.record.files:
            raise ConfigurationError(f"the boot medium {self.directory} has no {name}: {_REBUILD}")
        return self.directory / name

    @property
    def initrds(self) -> tuple[str, ...]:
        """Names of the initrds, in the order in which a boot loader passes them to the kernel."""
        return (INITRD, FIRMWARE) if FIRMWARE in self else (INITRD,)

    def verify(self) -> None:
        """Read every file, and compare its SHA-256 with the record.

        Raises:
            ConfigurationError: a file was altered.
        """
        for name, recorded in self.record.files.items():
            try:
                sha256 = hash_file(self.directory / name)
            except OSError as error:
                raise ConfigurationError(f"can't read {self.directory / name}: {error.strerror}") from error
            if sha256 != recorded.sha256:
                raise ConfigurationError(f"{self.directory / name} was altered: {_REBUILD} again")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_files(directory: Path) -> dict[str, MediumFile]:
    """Return every file of a directory by its path, except for the record itself."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != RECORD)
    return {
        str(path.relative_to(directory)): MediumFile(path.stat().st_size, hash_file(path))
        for path in sorted(paths)
    }
