"""A file that a client has uploaded: checked if it is an image of diskcast, converted otherwise."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from protocol.errors import DiskcastError
from protocol.image.image_format import IMAGE_MAGIC
from sender.imaging.foreign.import_limits import ImportLimits
from sender.imaging.foreign.sniff import ForeignFormat, sniff_format
from sender.imaging.image_file import ImageFile
from sender.imaging.image_verify import verify_image
from sender.imaging.pack import PackOptions, pack_image
from sender.library.image_probe import SUFFIX
from sender.store.records.image_uploads import UploadState

NAME_CHARACTERS_MAX: Final = 64

OnPhase = Callable[[UploadState, int, int], None]
"""Called in the working thread with the phase, the bytes done and the total bytes."""

_FIXES: Final = (
    ("raise --max-size", "pack it by `diskcast pack --max-size`, and upload the .dci file"),
    ("--allow-unsandboxed", "set library.allow_unsandboxed"),
)
"""Options of ``pack`` in error messages, and the same for a daemon."""


@dataclasses.dataclass(frozen=True, slots=True)
class CheckedImage:
    """An image that may enter the library, still under a temporary name."""

    image_id: str
    name: str
    path: Path


@dataclasses.dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A received file, or the part of it that has arrived. All methods block.

    Attributes:
        path: the file, alone in its folder: the file names of a VMDK's parts count there.
        file_name: its name on the client's machine, which error messages use.
        name: of a converted image.
        format: of the file; None to detect it.
    """

    path: Path
    file_name: str
    name: str
    format: ForeignFormat | None
    allow_unsandboxed: bool

    def refuse_early(self) -> None:
        """Refuse a file whose first part shows that it isn't a disk: an archive, for example.

        Raises:
            DiskcastError: it isn't.
            OSError: it can't be read.
        """
        if self.format is None and not self._is_image():
            with self._translated():
                sniff_format(self.path)

    def check(self, on_phase: OnPhase) -> CheckedImage:
        """Return the checked image that the file is, or is converted to.

        Raises:
            DiskcastError: the file is damaged, or can't be converted.
            OSError: it can't be read.
        """
        with self._translated():
            if self._is_image() and self.format is None:
                return self._verify(on_phase)
            packed = pack_image(
                self.path,
                self.path.with_name(f"{self.path.name}{SUFFIX}"),
                PackOptions(
                    name=self.name,
                    format=self.format,
                    limits=ImportLimits(allow_unsandboxed=self.allow_unsandboxed),
                ),
                on_progress=lambda done, total: on_phase(UploadState.PACKING, done, total),
                on_import=lambda done, total: on_phase(UploadState.UNPACKING, done, total),
            )
            return CheckedImage(packed.image_id.hex(), self.name, packed.path)

    def _verify(self, on_phase: OnPhase) -> CheckedImage:
        with ImageFile.open(self.path) as image:
            report = verify_image(
                image, on_progress=lambda done, total: on_phase(UploadState.CHECKING, done, total)
            )
            report.raise_if_bad(image)
            return CheckedImage(image.manifest.image_id.hex(), image.manifest.name, self.path)

    def _is_image(self) -> bool:
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return file.read(len(IMAGE_MAGIC)) == IMAGE_MAGIC

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Let errors name the client's file, and fixes that exist for a daemon."""
        try:
            yield
        except DiskcastError as error:
            text = str(error).replace(str(self.path), self.file_name)
            for option, fix in _FIXES:
                text = text.replace(option, fix)
            raise type(error)(text) from error
