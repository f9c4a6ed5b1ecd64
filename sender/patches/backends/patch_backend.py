"""The interface of backends, and what all of those that write into a filesystem of the image share."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from protocol.disk.disk_layout import layout_of
from protocol.disk.partition_table import Partition
from protocol.errors import ConfigurationError
from protocol.image.manifest import Manifest
from protocol.trust.statement import ALL_PARTITIONS, PATCH_PARTITIONS
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature
from sender.patches.machine_settings import MachineSettings
from sender.patches.template_fields import FILESYSTEM_KINDS, BackendKind

_SHELL_DEFAULT: Final = "/bin/bash"

_UNSUPPORTED: Final[Mapping[BackendKind, Mapping[str, str]]] = {
    kind: {
        **dict.fromkeys(("locale", "timezone", "network"), "declare the files that set it with [[files]]"),
        "first_boot": "put a service into the golden image, and declare its settings with [[files]]",
        "user_data": "cloud-init reads it from a seed partition only",
    }
    for kind in FILESYSTEM_KINDS
}
"""Settings that a backend can't apply, with the fix."""


class PatchBackend(Protocol):
    """A way to give one machine its settings."""

    @property
    def manifest(self) -> Manifest:
        """Return the image's manifest."""

    def check(self, settings: MachineSettings) -> None:
        """Check settings without the image's content, before the first patch is made.

        Raises:
            ConfigurationError: the backend can't apply one of them.
        """

    def changed_blocks(self, settings: MachineSettings) -> dict[int, bytes]:
        """Return the raw bytes of the image's blocks that differ for the machine; equal settings give equal blocks.

        Raises:
            ConfigurationError: the settings don't fit the image, or its filesystem can't be changed safely.
            DiskcastError: the image is damaged, or a disk failed.
        """


def require_supported(kind: BackendKind, settings: MachineSettings) -> None:
    """Refuse settings that a backend of the image's filesystem would silently leave out.

    Raises:
        ConfigurationError: there is one; the message names it and the fix.
    """
    for name, fix in _UNSUPPORTED[kind].items():
        if getattr(settings, name):
            raise ConfigurationError(f"{name}: the backend {kind} can't apply it: {fix}")
    if settings.domain and kind is BackendKind.NTFS:
        raise ConfigurationError("domain: the backend ntfs can't apply it: declare it in unattend.xml")
    for index, user in enumerate(settings.users):
        if kind is not BackendKind.EXT4:
            raise ConfigurationError(
                f"users[{index}]: the backend {kind} can't apply it: make the user in the golden image"
            )
        for name in ("full_name", "groups", "password_hash"):
            if getattr(user, name):
                raise ConfigurationError(
                    f"users[{index}].{name}: the backend {kind} can't apply it: make the user in the golden image"
                )
        if user.shell != _SHELL_DEFAULT:
            raise ConfigurationError(f"users[{index}].shell: the backend {kind} can't apply it: remove it")


def partition_of(image: ImageFile, number: int) -> Partition:
    """Return the partition that a template names, if patches may change it.

    Raises:
        ConfigurationError: the image has no such partition, or its statement doesn't allow it.
    """
    layout = layout_of(image.manifest.metadata)
    found = {} if layout is None else {part.number: part for part in layout.partitions}
    name = image.manifest.name
    if number not in found:
        raise ConfigurationError(
            f"filesystem.partition: the image {name!r} has no partition {number}: its partitions are "
            f"{', '.join(map(str, sorted(found))) or 'unknown'}"
        )
    statement = ImageSignature.of(image.header).statement
    if statement is not None:
        allowed = dict(statement.extensions).get(PATCH_PARTITIONS, "")
        if allowed != ALL_PARTITIONS and str(number) not in allowed.split(","):
            raise ConfigurationError(
                f"the signed statement of the image {name!r} doesn't let patches change partition {number}: sign it "
                f"with --patch-partitions {','.join(filter(None, (allowed, str(number))))}"
            )
    return found[number]


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to write.

    Attributes:
        path: absolute path.
        content: content, which may be secret.
        mode: permissions.
        user_id: owner.
        group_id: group of the owner.
    """

    path: str
    content: bytes = dataclasses.field(repr=False)
    mode: int = 0o644
    user_id: int = 0
    group_id: int = 0


@contextlib.contextmanager
def content_files(files: list[PlannedFile], *, mtime_s: int = 0) -> Iterator[list[int]]:
    """Provide the contents of files as descriptors that a confined tool may open for reading."""
    with contextlib.ExitStack() as stack:
        fds = []
        for planned in files:
            file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
            file.write(planned.content)
            os.fchmod(file.fileno(), 0o444)  # for the tool's user; nobody else can name the file
            os.utime(file.fileno(), (mtime_s, mtime_s))
            fds.append(file.fileno())
        yield fds
