"""Files in a FAT filesystem, written by mtools without mounting: the configuration on a board's boot partition."""

from __future__ import annotations

import posixpath
import re
import struct
from typing import Final

from protocol.errors import ConfigurationError
from protocol.image.manifest import Manifest
from protocol.program.system_tools import ToolError
from sender.imaging.editing.partition_view import PartitionView
from sender.imaging.image_file import ImageFile
from sender.imaging.verified_blocks import VerifiedBlocks
from sender.patches.backends.patch_backend import (
    PlannedFile,
    content_files,
    partition_of,
    require_supported,
)
from sender.patches.machine_settings import MachineSettings
from sender.patches.template_fields import BackendKind

_TIME_S: Final = 315_619_200
"""Time of all files, 2 January 1980: FAT's times start a day before, in an unknown time zone."""
_SECTOR_BYTES: Final = 512
_FLAGS_OFFSET, _FLAGS_OFFSET_FAT32 = 0x25, 0x41
_DIRTY: Final = 1
_NAME: Final = re.compile(r'[^\x00-\x1f"*/:<>?\\|\x7f]{1,255}(?<![. ])')
_ENVIRONMENT: Final = {"SOURCE_DATE_EPOCH": str(_TIME_S), "TZ": "UTC", "LC_ALL": "C.UTF-8"}


class FatBackend:
    """The backend for one partition of an open image."""

    def __init__(self, image: ImageFile, number: int) -> None:
        """Check the filesystem.

        Raises:
            ConfigurationError: the partition can't be patched: it has no such filesystem, or that wasn't unmounted.
        """
        self._blocks = VerifiedBlocks(image)
        self._number = number
        self._part = partition_of(image, number)
        with self._view() as view:
            self._check_boot_sector(view.read(0, _SECTOR_BYTES))

    @property
    def manifest(self) -> Manifest:
        """Return the image's manifest."""
        return self._blocks.image.manifest

    def check(self, settings: MachineSettings) -> None:
        """Check settings; see :class:`PatchBackend`."""
        require_supported(BackendKind.FAT, settings)
        if not settings.files:
            raise ConfigurationError("files: the backend fat writes files only: declare one with [[files]]")
        for file in settings.files:
            if not all(map(_NAME.fullmatch, file.path[1:].split("/"))):
                raise ConfigurationError(
                    f"files: the path {file.path!r} can't be written: FAT has no such names"
                )

    def changed_blocks(self, settings: MachineSettings) -> dict[int, bytes]:
        """Return the changed blocks; see :class:`PatchBackend`."""
        self.check(settings)
        files = [PlannedFile(file.path, file.content.encode()) for file in settings.files]
        with self._view() as view:
            try:
                self._make_folders(view, files)
                with content_files(files, mtime_s=_TIME_S) as fds:
                    for planned, fd in zip(files, fds, strict=True):
                        view.run(
                            *("mcopy", "-o", "-n", "-m", "-i", view.path),
                            *(f"/proc/self/fd/{fd}", f"::{planned.path}"),
                            reads=(fd,),
                            environment=_ENVIRONMENT,
                        )
                for planned in files:
                    if view.run("mtype", "-i", view.path, f"::{planned.path}", environment=_ENVIRONMENT) != (
                        planned.content
                    ):
                        raise self._refused(f"{planned.path} couldn't be written: free space in it")
            except ToolError as error:
                raise self._refused(
                    f"{error}; install mtools if it is missing, or check the filesystem with fsck.fat"
                ) from error
            return view.changed_blocks()

    def _make_folders(self, view: PartitionView, files: list[PlannedFile]) -> None:
        made: set[str] = set()
        for planned in files:
            folder = posixpath.dirname(planned.path)
            missing = []
            while folder != "/" and folder not in made and not self._exists(view, folder):
                missing.append(folder)
                folder = posixpath.dirname(folder)
            for path in reversed(missing):
                view.run("mmd", "-D", "s", "-i", view.path, f"::{path}", environment=_ENVIRONMENT)
                made.add(path)

    def _exists(self, view: PartitionView, folder: str) -> bool:
        try:
            view.run("mdir", "-b", "-i", view.path, f"::{folder}", environment=_ENVIRONMENT)
        except ToolError:
            return False
        return True

    def _view(self) -> PartitionView:
        return PartitionView(self._blocks, self._part.start_bytes, self._part.size_bytes)

    def _refused(self, reason: str) -> ConfigurationError:
        return ConfigurationError(
            f"partition {self._number} of the image {self.manifest.name!r} can't be patched: {reason}"
        )

    def _check_boot_sector(self, data: bytes) -> None:
        if (
            len(data) < _SECTOR_BYTES
            or data[510:512] != b"\x55\xaa"
            or b"FAT" not in (data[54:62] + data[82:90])
        ):
            raise self._refused("it has no FAT filesystem: name another one in filesystem.partition")
        (fat_sectors,) = struct.unpack_from("<H", data, 0x16)
        if data[_FLAGS_OFFSET if fat_sectors else _FLAGS_OFFSET_FAT32] & _DIRTY:
            raise self._refused(
                "its FAT filesystem wasn't unmounted: shut the golden machine down, or run fsck.fat -a on its disk, "
                "and pack it again"
            )
