"""Selection of the disk that ``--target`` names: by path, serial number, WWN, model, or a rule that fits one disk."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from protocol.errors import AmbiguousTargetError, ConfigurationError, TargetError
from protocol.shared.units import parse_size_bytes
from receiver.disk.inventory.block_devices import (
    SYSTEM_PATHS,
    BlockDevice,
    DeviceIdentity,
    DeviceKind,
    DiskInventory,
    SystemPaths,
    normalized_wwn,
)
from receiver.disk.inventory.holders import LoopProbe, loop_file
from receiver.disk.inventory.read_devices import read_inventory
from receiver.disk.inventory.sysfs import device_folder
from receiver.target.eligibility import (
    NOTHING_WRITTEN,
    ImageNeeds,
    judge,
    refuse_if_boot_stick,
    with_candidates,
)

_LOOKS_LIKE_SELECTOR: Final = re.compile(r"[A-Za-z_ -]+[=:]")


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """The rule behind ``auto``.

    Attributes:
        order: ``smallest`` or ``largest`` of several disks; empty if only one may fit.
        min_bytes: smallest size to accept.
        max_bytes: largest size to accept.
        transport: transport to accept, empty for any; loop devices need ``loop``.
        removable: accept cards, sticks and USB disks as well.
    """

    order: str = ""
    min_bytes: int = 0
    max_bytes: int | None = None
    transport: str = ""
    removable: bool = False

    def admits(self, disk: BlockDevice) -> bool:
        """Return whether the rule fits ``disk``, eligible or not."""
        kind = str(disk.kind) if disk.kind is DeviceKind.LOOP else disk.transport
        if self.transport:
            if kind != self.transport:
                return False
        elif disk.kind is not DeviceKind.DISK:
            return False
        excluded = disk.removable and not self.removable and self.transport not in ("usb", "mmc")
        upper_bytes = disk.size_bytes if self.max_bytes is None else self.max_bytes
        return not excluded and self.min_bytes <= disk.size_bytes <= upper_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class DiskChoice:
    """A chosen target.

    Attributes:
        path: the path to open.
        identity: identity of the device, checked again after opening; None for a path that the operator gave.
    """

    path: Path
    identity: DeviceIdentity | None


def choose_target(
    text: str,
    *,
    partition: int | None,
    raw_bytes: int,
    system_paths: SystemPaths = SYSTEM_PATHS,
    probe: LoopProbe = loop_file,
) -> DiskChoice:
    """Return the disk or partition that ``--target`` and ``--partition`` name.

    A path is returned unchecked: opening checks it. Any other selector must fit exactly one eligible disk; every error
    lists the disks of this machine with a verdict on each.

    Args:
        text: a path, ``serial=``, ``wwn=``, ``model=``, or ``auto`` with rules after a colon.
        partition: number of a partition; None for the whole disk.
        raw_bytes: size of the image; 0 if it isn't known yet.
        system_paths: directories that describe the devices.
        probe: returns the file of a loop device.

    Raises:
        ConfigurationError: ``text`` isn't a selector.
        AmbiguousTargetError: several disks fit.
        TargetError: no disk fits, or the only one is refused; the class states the reason.
    """
    kind, separator, value = text.partition("=")
    is_rule = text == "auto" or text.startswith("auto:")
    is_name = bool(separator) and kind in _MATCHERS
    if not is_rule and not is_name:
        _refuse_misspelt(text)
        if partition is None:
            return DiskChoice(Path(text), None)
    inventory = read_inventory(system_paths)
    probe = functools.cache(probe)
    try:
        if is_rule:
            return _choose_auto(text, partition, raw_bytes, inventory, probe)
        if is_name:
            return _choose_named(text, kind, value, partition, raw_bytes, inventory, probe)
        assert partition is not None
        return _choice(_partition_of(_disk_at(Path(text), inventory), partition, inventory))
    except TargetError as error:
        raise with_candidates(error, inventory, raw_bytes, probe=probe) from None


def is_path(text: str) -> bool:
    """Return whether ``--target`` is a path rather than a selector."""
    kind, separator, _ = text.partition("=")
    return text != "auto" and not text.startswith("auto:") and not (separator and kind in _MATCHERS)


def names_disk(text: str, disk: BlockDevice) -> bool:
    """Return whether ``--target`` names ``disk``, or may choose it by its rule; eligible or not."""
    kind, separator, value = text.partition("=")
    if separator and kind in _MATCHERS:
        return _MATCHERS[kind](disk, value.strip())
    return block_device_of(text) == disk.number if is_path(text) else parse_rule(text).admits(disk)


def names_file(text: str, partition: int | None) -> bool:
    """Return whether ``--target`` names a file, also a new one, or a partition, rather than a disk."""
    if partition is not None:
        return True
    if not is_path(text):
        return False
    number = block_device_of(text)
    if number is None:
        return not Path(text).is_relative_to(SYSTEM_PATHS.dev)
    return (device_folder(number) / "partition").exists()


def block_device_of(text: str) -> int | None:
    """Return the number of the block device at a path; None for a file, or where nothing is."""
    try:
        status = Path(text).stat()
    except (OSError, ValueError):
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def _refuse_misspelt(text: str) -> None:
    """Refuse a misspelt selector: ``serail=X`` mustn't become a file, which a live system would keep in memory."""
    if _LOOKS_LIKE_SELECTOR.match(text) and not Path(text).exists():
        raise ConfigurationError(
            f"--target {text} is neither an existing file nor a selector: write a path, serial=…, wwn=…, model=… or "
            f"auto:RULES; for a new file of that name write ./{text}"
        )


def parse_rule(text: str) -> Rule:
    """Parse a rule such as ``auto:smallest,min=100G``.

    Raises:
        ConfigurationError: a part of it is unknown.
    """
    rule = Rule()
    for part in filter(None, text.removeprefix("auto").removeprefix(":").split(",")):
        key, separator, value = part.partition("=")
        if part in ("smallest", "largest"):
            rule = dataclasses.replace(rule, order=part)
        elif part == "removable":
            rule = dataclasses.replace(rule, removable=True)
        elif separator and key == "min":
            rule = dataclasses.replace(rule, min_bytes=parse_size_bytes(value))
        elif separator and key == "max":
            rule = dataclasses.replace(rule, max_bytes=parse_size_bytes(value))
        elif separator and key == "transport":
            rule = dataclasses.replace(rule, transport=value.lower())
        else:
            raise ConfigurationError(
                f"{part!r} isn't a rule of --target auto: write smallest, largest, min=SIZE, max=SIZE, transport=NAME "
                "or removable, with commas between them"
            )
    return rule


def _choose_auto(
    text: str, partition: int | None, raw_bytes: int, inventory: DiskInventory, probe: LoopProbe
) -> DiskChoice:
    rule = parse_rule(text)
    usable = []
    for disk in inventory.disks():
        if rule.admits(disk) and (partition is None or _find_partition(disk, partition, inventory)):
            device = _find_partition(disk, partition, inventory) if partition else disk
            # A rule never selects the disk that the machine runs from or was booted from, nor a partition of it.
            refusal = judge(disk, inventory, ImageNeeds(0 if partition else raw_bytes), probe=probe)
            refusal = refusal or refuse_if_boot_stick(disk)
            if device is not None and refusal is None:
                refusal = judge(device, inventory, ImageNeeds(raw_bytes), probe=probe)
                if refusal is None:
                    usable.append(device)
    if rule.order and usable:
        usable.sort(key=lambda device: device.size_bytes, reverse=rule.order == "largest")
        usable = [device for device in usable if device.size_bytes == usable[0].size_bytes]
    if not usable:
        raise TargetError(
            f"no disk fits --target {text}: name one by its path, or change the rule; {NOTHING_WRITTEN}"
        )
    if len(usable) > 1:
        raise _ambiguous(text, usable)
    return _choice(usable[0])


def _choose_named(
    text: str,
    kind: str,
    value: str,
    partition: int | None,
    raw_bytes: int,
    inventory: DiskInventory,
    probe: LoopProbe,
) -> DiskChoice:
    matching = [disk for disk in inventory.disks() if _MATCHERS[kind](disk, value.strip())]
    devices = [_partition_of(disk, partition, inventory) if partition else disk for disk in matching]
    refusals = [judge(device, inventory, ImageNeeds(raw_bytes), probe=probe) for device in devices]
    if kind == "model":
        refusals = [
            refusal or refuse_if_boot_stick(disk) for disk, refusal in zip(matching, refusals, strict=True)
        ]
    usable = [device for device, refusal in zip(devices, refusals, strict=True) if refusal is None]
    if not matching:
        raise TargetError(f"no disk has {text}: name one of the disks of this machine; {NOTHING_WRITTEN}")
    # A serial number or WWN names one disk. If two disks have it, refusing one doesn't make the other the right one.
    if len(usable) > 1 or (len(devices) > 1 and kind != "model"):
        raise _ambiguous(text, devices if kind != "model" else usable)
    if not usable:
        raise next(refusal for refusal in refusals if refusal is not None).error()
    return _choice(usable[0])


def _ambiguous(text: str, devices: Sequence[BlockDevice]) -> AmbiguousTargetError:
    paths = ", ".join(str(device.path) for device in devices)
    return AmbiguousTargetError(
        f"--target {text} fits {len(devices)} disks ({paths}): name one by its path, serial=… or wwn=…; "
        f"{NOTHING_WRITTEN}"
    )


def _has_serial(disk: BlockDevice, value: str) -> bool:
    return bool(value) and any(serial.casefold() == value.casefold() for serial in disk.identity.serials)


def _has_wwn(disk: BlockDevice, value: str) -> bool:
    return bool(value) and normalized_wwn(disk.identity.wwn) == normalized_wwn(value)


def _has_model(disk: BlockDevice, value: str) -> bool:
    return bool(disk.model) and fnmatch.fnmatchcase(disk.model.casefold(), value.casefold())


_MATCHERS: Final[dict[str, Callable[[BlockDevice, str], bool]]] = {
    "serial": _has_serial,
    "wwn": _has_wwn,
    "model": _has_model,
}


def _disk_at(path: Path, inventory: DiskInventory) -> BlockDevice:
    try:
        status = path.stat()
    except OSError as error:
        raise TargetError(f"{path} can't be used: {error.strerror}; {NOTHING_WRITTEN}") from error
    disk = inventory.devices.get(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None
    if disk is None:
        raise TargetError(
            f"--partition is for disks, and {path} isn't one: name a disk, or leave --partition out; {NOTHING_WRITTEN}"
        )
    if disk.partition_number is not None:
        raise TargetError(
            f"{path} is a partition already: name the disk, or leave --partition out; {NOTHING_WRITTEN}"
        )
    return disk


def _find_partition(disk: BlockDevice, number: int, inventory: DiskInventory) -> BlockDevice | None:
    return next((each for each in inventory.partitions_of(disk) if each.partition_number == number), None)


def _partition_of(disk: BlockDevice, number: int, inventory: DiskInventory) -> BlockDevice:
    partition = _find_partition(disk, number, inventory)
    if partition is not None:
        return partition
    there = ", ".join(str(each.partition_number) for each in inventory.partitions_of(disk)) or "none"
    raise TargetError(
        f"{disk.path} has no partition {number} (existing ones: {there}): choose one of these, or run partx --update "
        f"{disk.path} if the table was just changed; {NOTHING_WRITTEN}"
    )


def _choice(device: BlockDevice) -> DiskChoice:
    return DiskChoice(device.path, device.identity)
