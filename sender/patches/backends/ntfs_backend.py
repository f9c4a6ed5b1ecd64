"""Settings in an NTFS filesystem of Windows: the computer name in its registry, and files such as unattend.xml.

ntfscat and ntfscp read and write files, hivexregedit changes the registry; nothing is mounted. ntfscp gives new files
the current time, which becomes a fixed one, so that equal settings give equal blocks.
"""

from __future__ import annotations

import os
import re
import struct
import time
import xml.etree.ElementTree as ET
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
from sender.patches.backends.windows_hive import HIVE_BYTES_MAX, set_computer_name
from sender.patches.machine_settings import MachineSettings
from sender.patches.template_fields import BackendKind

SYSTEM_HIVE: Final = "/Windows/System32/config/SYSTEM"
_UNATTEND: Final = re.compile(r"/Windows/(Panther|System32/Sysprep)/(Unattend/)?unattend\.xml", re.IGNORECASE)
_UNATTEND_ROOT: Final = "{urn:schemas-microsoft-com:unattend}unattend"
_NETBIOS_CHARS_MAX: Final = 15
_NAME: Final = re.compile(r'[^\x00-\x1f"*/:<>?\\|]{1,255}(?<![. ])')
_DIRTY: Final = re.compile(rb"Volume Flags:\s+0x([0-9a-fA-F]{4})")
_PROBE_REASONS: Final = {"code 14": "is hibernated", "code 15": "wasn't unmounted", "code 12": "isn't NTFS"}
"""Exit codes of ntfs-3g.probe."""

_TICKS: Final = 10_000_000
_EPOCH_S: Final = 11_644_473_600
"""Seconds from 1601, from which NTFS counts ticks of 100 ns, to 1970."""
_FIXED_TICKS: Final = (_EPOCH_S + 1_577_836_800) * _TICKS
"""1 January 2020."""
_CLOCK_SLACK_S: Final = 2


class NtfsBackend:
    """The backend for one partition of an open image."""

    def __init__(self, image: ImageFile, number: int) -> None:
        """Check the filesystem.

        Raises:
            ConfigurationError: the partition can't be patched: it isn't NTFS, is hibernated, or wasn't unmounted.
        """
        self._blocks = VerifiedBlocks(image)
        self._number = number
        self._part = partition_of(image, number)
        with self._view() as view:
            self._check_volume(view)

    @property
    def manifest(self) -> Manifest:
        """Return the image's manifest."""
        return self._blocks.image.manifest

    def check(self, settings: MachineSettings) -> None:
        """Check settings; see :class:`PatchBackend`."""
        require_supported(BackendKind.NTFS, settings)
        if len(settings.hostname) > _NETBIOS_CHARS_MAX:
            raise ConfigurationError(
                f"hostname: {settings.hostname!r} can't be a computer name: Windows takes "
                f"{_NETBIOS_CHARS_MAX} characters"
            )
        for index, file in enumerate(settings.files):
            if not all(map(_NAME.fullmatch, file.path[1:].split("/"))) or file.path == SYSTEM_HIVE:
                raise ConfigurationError(
                    f"files[{index}].path: {file.path!r} can't be written: write it as /Windows/Panther/unattend.xml"
                )
            if _UNATTEND.fullmatch(file.path):
                _check_unattend(index, file.content)

    def changed_blocks(self, settings: MachineSettings) -> dict[int, bytes]:
        """Return the changed blocks; see :class:`PatchBackend`."""
        self.check(settings)
        with self._view() as view:
            started_s = int(time.time()) - _CLOCK_SLACK_S
            try:
                hive = view.run("ntfscat", "-f", view.path, SYSTEM_HIVE, output_bytes_max=HIVE_BYTES_MAX)
                files = [PlannedFile(SYSTEM_HIVE, set_computer_name(hive, settings.hostname))]
                files += [PlannedFile(file.path, file.content.encode()) for file in settings.files]
                with content_files(files) as fds:
                    for planned, fd in zip(files, fds, strict=True):
                        view.run(
                            *("ntfscp", "-f", "-q", view.path, f"/proc/self/fd/{fd}", planned.path),
                            reads=(fd,),
                        )
                self._fix_times(view, started_s)
                for planned in files:
                    content = view.run(
                        "ntfscat", "-f", view.path, planned.path, output_bytes_max=HIVE_BYTES_MAX
                    )
                    if content != planned.content:
                        raise self._refused(f"{planned.path} couldn't be written: free space in it")
            except ToolError as error:
                raise self._refused(
                    f"{error}; the golden Windows must have the folders of all files, and this computer ntfs-3g and "
                    "libwin-hivex-perl"
                ) from error
            except ValueError as error:
                raise self._refused(str(error)) from error
            return view.changed_blocks()

    def _fix_times(self, view: PartitionView, started_s: int) -> None:
        """Replace times of this run in changed blocks: they are the one difference between two runs.

        They are aligned to 8 bytes. A value of those bits in the few changed bytes that is no time has a chance of one
        in 10¹¹.
        """
        low = (started_s + _EPOCH_S) * _TICKS
        high = (int(time.time()) + _CLOCK_SLACK_S + _EPOCH_S) * _TICKS
        fixed = struct.pack("<Q", _FIXED_TICKS)
        block_bytes = self.manifest.block_bytes
        for block, content in view.changed_blocks().items():
            original = self._blocks.read(block)
            offset = block * block_bytes - self._part.start_bytes
            for at in range(0, len(content) - 7, 8):
                value = content[at : at + 8]
                if value != original[at : at + 8] and low <= int.from_bytes(value, "little") <= high:
                    os.pwrite(view.fd, fixed, offset + at)

    def _view(self) -> PartitionView:
        return PartitionView(self._blocks, self._part.start_bytes, self._part.size_bytes)

    def _refused(self, reason: str) -> ConfigurationError:
        return ConfigurationError(
            f"partition {self._number} of the image {self.manifest.name!r} can't be patched: {reason}"
        )

    def _check_volume(self, view: PartitionView) -> None:
        again = "shut Windows down with `shutdown /s /t 0`, without fast startup, and pack the disk again"
        try:
            view.run("ntfs-3g.probe", "--readwrite", view.path)
            flags = _DIRTY.search(view.run("ntfsinfo", "-f", "-m", view.path))
        except ToolError as error:
            reason = next((text for code, text in _PROBE_REASONS.items() if code in str(error)), None)
            if reason is None:
                raise self._refused(f"{error}; install ntfs-3g if it is missing") from error
            raise self._refused(f"its filesystem {reason}: {again}") from error
        if flags is None or int(flags[1], 16) & 1:
            raise self._refused(f"its NTFS filesystem is marked as dirty: run chkdsk /f in Windows, {again}")


def _check_unattend(index: int, text: str) -> None:
    """Refuse answers that Windows Setup would stop at, in front of each machine."""
    try:
        if "<!DOCTYPE" in text:
            raise ConfigurationError(f"files[{index}].content: an answer file has no DOCTYPE: remove it")
        root = ET.fromstring(text)  # noqa: S314  no entities without a DOCTYPE
    except ET.ParseError as error:
        raise ConfigurationError(f"files[{index}].content: the answer file isn't XML: {error}") from error
    if root.tag != _UNATTEND_ROOT:
        raise ConfigurationError(
            f'files[{index}].content: an answer file has the root <unattend xmlns="urn:schemas-microsoft-com:unattend">'
        )
