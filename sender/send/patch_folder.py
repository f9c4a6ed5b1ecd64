"""The machine patches in a folder: one file ``NAME.dcp`` for each machine, and the signed set of all."""

from __future__ import annotations

import asyncio
from pathlib import Path

from protocol.errors import ConfigurationError, ImageChangedError, JoinRefusedError, PatchRefusedError
from protocol.model.session_records import JoinRequest
from protocol.patch.machine_patch import PATCH_BYTES_MAX, parse_patch_untrusted
from protocol.patch.patch_set import PATCH_SET_BYTES_MAX, PATCH_SET_MACHINES_MAX
from sender.patches.patch_directory import PATCH_SUFFIX, SET_NAME


class PatchFolder:
    """The patches of one image in a folder; only their ids and paths are held in memory."""

    def __init__(self, folder: Path, image_id: bytes) -> None:
        """Read and check all patches of ``folder``.

        Raises:
            ConfigurationError: there are none, one is damaged or for another image, or two are for one machine.
        """
        self._folder = folder
        self._ids: dict[str, bytes] = {}
        self._paths: dict[bytes, Path] = {}
        try:
            paths = sorted(folder.glob(f"*{PATCH_SUFFIX}"))
            if len(paths) > PATCH_SET_MACHINES_MAX:
                raise ConfigurationError(f"{folder} has more than {PATCH_SET_MACHINES_MAX} patches")
            for path in paths:
                self._add(path, image_id)
        except OSError as error:
            raise ConfigurationError(f"can't read the patches in {folder}: {error.strerror}") from error
        if not paths:
            raise ConfigurationError(
                f"{folder} has no machine patches: build them with `diskcast patches build` and name their folder"
            )

    def _add(self, path: Path, image_id: bytes) -> None:
        try:
            patch = parse_patch_untrusted(_read(path, PATCH_BYTES_MAX))
        except PatchRefusedError as error:
            raise ConfigurationError(f"{path}: {error}") from error
        if patch.image_id != image_id:
            raise ConfigurationError(
                f"{path} is for the image {patch.image_id.hex()}, and this cast has {image_id.hex()}: build the "
                "patches again, for this image"
            )
        if patch.machine_id in self._ids:
            raise ConfigurationError(f"{path} is a second patch for {patch.machine_id}: remove one of them")
        self._ids[patch.machine_id] = patch.patch_id
        self._paths[patch.patch_id] = path

    async def find(self, request: JoinRequest) -> bytes | None:
        """Return the patch of the machine's name, serial number, asset tag or hardware address.

        Raises:
            JoinRefusedError: there is none: the machine would become a clone of the golden image.
        """
        identity = request.identity
        own = () if identity is None else (identity.serial, identity.asset_tag, *identity.macs)
        for machine_id in (request.name, *own):
            if machine_id in self._ids:
                return self._ids[machine_id]
        raise JoinRefusedError(
            f"there is no machine patch for {request.name} in {self._folder}: build one, or give this machine the "
            "--name of one"
        )

    async def read(self, patch_id: bytes) -> bytes:
        """Return a patch.

        Raises:
            ImageChangedError: its file was changed or removed after the start.
        """
        path = self._paths[patch_id]
        try:
            data = await asyncio.to_thread(_read, path, PATCH_BYTES_MAX)
            if parse_patch_untrusted(data).patch_id == patch_id:
                return data
        except (OSError, PatchRefusedError) as error:
            raise ImageChangedError(f"{path} can't be read any more: {error}") from error
        raise ImageChangedError(f"{path} was changed during the cast: start the cast again")

    async def signed_set(self) -> bytes:
        """Return the signed set; empty if there is none.

        Raises:
            ImageChangedError: it can't be read.
        """
        path = self._folder / SET_NAME
        try:
            return await asyncio.to_thread(_read, path, PATCH_SET_BYTES_MAX)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ImageChangedError(f"{path} can't be read: {error.strerror}") from error


def _read(path: Path, bytes_max: int) -> bytes:
    """Read a file, and one byte more than it may have, so that its parser refuses a larger one."""
    with path.open("rb") as file:
        return file.read(bytes_max + 1)
