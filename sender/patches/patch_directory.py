"""A folder of patches: one file for each machine, an index, and the signed set."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError, PatchRefusedError, StorageError
from protocol.patch.machine_patch import PATCH_BYTES_MAX, MachinePatch, parse_patch_untrusted
from protocol.patch.patch_set import PATCH_SET_MACHINES_MAX
from sender.patches.backends.patch_backend import PatchBackend
from sender.patches.machine_settings import MachineSettings, settings_of
from sender.patches.machines_file import PatchMachine
from sender.patches.patch_builder import patch_of_blocks
from sender.patches.template import Template

PATCH_SUFFIX: Final = ".dcp"
INDEX_NAME: Final = "index.json"
SET_NAME: Final = "patches.signed"
_SECRET_FILE_MODE: Final = 0o600
_SECRET_DIRECTORY_MODE: Final = 0o700
"""Patches hold password hashes and other secrets of machines."""


@dataclasses.dataclass(frozen=True, slots=True)
class BuiltPatch:
    """A patch in the folder, as the index lists it."""

    name: str
    machine_id: str
    hostname: str
    patch_id: str
    file: str
    blocks: int
    bytes: int


def build_patches(
    backend: PatchBackend,
    template: Template,
    machines: Sequence[PatchMachine],
    directory: Path,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[BuiltPatch]:
    """Write the patches of all machines and the index; one patch is in memory at a time.

    All machines are checked before the first file is written.

    Raises:
        ConfigurationError: a machine's settings are invalid, two machines have the same host name, or the folder can't
            be written.
        StorageError: the disk is full or failed.
    """
    hostnames = _distinct_hostnames(backend, template, machines)
    try:
        directory.mkdir(mode=_SECRET_DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"can't create {directory}: {error.strerror}") from error
    built = []
    for index, (machine, hostname) in enumerate(zip(machines, hostnames, strict=True), 1):
        contents = _changed_blocks(backend, settings_of(template, machine), machine)
        patch = patch_of_blocks(backend.manifest, machine, contents)
        file_name = machine.name + PATCH_SUFFIX
        write_private(directory / file_name, patch.data)
        built.append(
            BuiltPatch(
                machine.name,
                machine.machine_id,
                hostname,
                patch.patch_id.hex(),
                file_name,
                int(patch.blocks.size),
                len(patch.data),
            )
        )
        on_progress(index, len(machines))
    manifest = backend.manifest
    index_data = {
        "image_id": manifest.image_id.hex(),
        "image": manifest.name,
        "machines": [dataclasses.asdict(one) for one in built],
    }
    write_private(directory / INDEX_NAME, json.dumps(index_data, indent=1).encode() + b"\n")
    return built


def _changed_blocks(
    backend: PatchBackend, settings: MachineSettings, machine: PatchMachine
) -> dict[int, bytes]:
    contents = backend.changed_blocks(settings)
    if not contents:
        raise ConfigurationError(
            f"machine {machine.name}: the image has all of its settings already, and a patch changes something: "
            "generalise the golden machine"
        )
    return contents


def _distinct_hostnames(
    backend: PatchBackend, template: Template, machines: Sequence[PatchMachine]
) -> list[str]:
    """Return the host names after a check of all settings; equal names are the problem that patches solve."""
    owners: dict[str, str] = {}
    hostnames = []
    for machine in machines:
        settings = settings_of(template, machine)
        backend.check(settings)
        folded = settings.hostname.lower()
        if folded in owners:
            raise ConfigurationError(
                f"hostname, machine {machine.name}: {folded!r} is the host name of {owners[folded]} too: use a "
                "variable such as {{ name }}"
            )
        owners[folded] = machine.name
        hostnames.append(settings.hostname)
    return hostnames


def write_private(path: Path, data: bytes) -> None:
    """Replace a file that only its owner may read; not flushed, since it can be built again.

    Raises:
        ConfigurationError: the file can't be created there.
        StorageError: the disk is full or failed.
    """
    temporary = path.with_name(f".{path.name}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        temporary.unlink(missing_ok=True)  # of a killed process
        descriptor = os.open(temporary, flags, _SECRET_FILE_MODE)
    except OSError as error:
        raise ConfigurationError(
            f"can't write in {path.parent}: {error.strerror}; choose another folder"
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: can't write it: {error.strerror}; free some space") from error


def read_patch(path: Path) -> MachinePatch:
    """Return the patch of a file.

    Raises:
        ConfigurationError: the file can't be read.
        PatchRefusedError: it isn't a patch, or is damaged.
    """
    try:
        with path.open("rb") as file:
            data = file.read(PATCH_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigurationError(f"can't read the patch {path}: {error.strerror}") from error
    try:
        return parse_patch_untrusted(data)
    except PatchRefusedError as error:
        raise PatchRefusedError(f"{path}: {error}") from error


def read_patches(directory: Path) -> list[MachinePatch]:
    """Return all patches of a folder, which must be for one image; their payloads aren't kept.

    Raises:
        ConfigurationError: there are none, too many, or those of several images.
        PatchRefusedError: one is damaged.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == PATCH_SUFFIX)
    except OSError as error:
        raise ConfigurationError(f"can't read {directory}: {error.strerror}") from error
    if not 0 < len(paths) <= PATCH_SET_MACHINES_MAX:
        raise ConfigurationError(
            f"{directory} has {len(paths)} patches, and a set has 1 to {PATCH_SET_MACHINES_MAX}: name a folder that "
            "`diskcast patches build` wrote"
        )
    patches = [dataclasses.replace(read_patch(path), data=b"") for path in paths]
    for path, patch in zip(paths, patches, strict=True):
        if patch.image_id != patches[0].image_id:
            raise ConfigurationError(f"{path} is for another image than {paths[0]}: build all patches again")
    return patches
