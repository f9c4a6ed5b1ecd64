"""Settings in an ext4 filesystem: host name, machine id, files and SSH keys, written by debugfs without mounting.

The system needs no cloud-init. debugfs gets the filesystem's own time of its last write as the current time, so that
equal settings give equal blocks.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
import stat
import struct
from typing import Final

from blake3 import blake3

from protocol.constants import KIB
from protocol.disk.partition_table import Partition
from protocol.errors import ConfigurationError
from protocol.image.manifest import Manifest
from protocol.program.system_tools import ToolError
from sender.imaging.contents.ext_files import ExtError, ExtFiles, ExtInode
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

_SUPERBLOCK_BYTES: Final = KIB
_MAGIC: Final = 0xEF53
_CLEAN, _ERRORS = 1, 2
_RECOVER: Final = 0x4
_ORPHAN_PRESENT: Final = 0x10000

_TEXT_BYTES_MAX: Final = 64 * KIB
"""Files of the image that are read for a change: /etc/hosts, /etc/passwd, /etc/group."""

_UNQUOTABLE: Final = re.compile(r'["<>\\]')
"""Letters with a meaning for debugfs, also in quotation marks."""
_HOST_LINE: Final = re.compile(r"[ \t]*127\.0\.1\.1[ \t]")
_ID_KEY: Final = "diskcast 2026 /etc/machine-id of a machine patch"


@dataclasses.dataclass(frozen=True, slots=True)
class _Account:
    user_id: int
    group_id: int
    home: str


class Ext4Backend:
    """The backend for one partition of an open image."""

    def __init__(self, image: ImageFile, number: int) -> None:
        """Check the filesystem.

        Raises:
            ConfigurationError: the partition can't be patched: it has no such filesystem, or that needs a repair.
        """
        self._blocks = VerifiedBlocks(image)
        self._number = number
        self._part: Partition = partition_of(image, number)
        with self._view() as view:
            self._time_s = self._check_superblock(view.read(KIB, _SUPERBLOCK_BYTES))

    @property
    def manifest(self) -> Manifest:
        """Return the image's manifest."""
        return self._blocks.image.manifest

    def check(self, settings: MachineSettings) -> None:
        """Check settings; see :class:`PatchBackend`."""
        require_supported(BackendKind.EXT4, settings)
        for file in settings.files:
            if _UNQUOTABLE.search(file.path):
                raise ConfigurationError(
                    f"files: the path {file.path!r} can't be written: use one without \", \\, < and >"
                )

    def changed_blocks(self, settings: MachineSettings) -> dict[int, bytes]:
        """Return the changed blocks; see :class:`PatchBackend`."""
        self.check(settings)
        with self._view() as view:
            try:
                found = ExtFiles.open_untrusted(view.read)
                files, folders = self._plan(found, settings)
                if not files:
                    return {}
                with content_files(files) as fds:
                    script = self._script(found, folders, files, fds)
                    with content_files([PlannedFile("", script.encode())]) as (script_fd,):
                        view.run(
                            *("debugfs", "-w", "-f", f"/proc/self/fd/{script_fd}", view.path),
                            reads=(*fds, script_fd),
                        )
                self._require_written(ExtFiles.open_untrusted(view.read), files, folders)
            except ExtError as error:
                raise self._refused(f"{error}; check it with e2fsck, and pack the disk again") from error
            except ToolError as error:
                raise self._refused(f"{error}; install e2fsprogs if it is missing") from error
            return view.changed_blocks()

    def _view(self) -> PartitionView:
        return PartitionView(self._blocks, self._part.start_bytes, self._part.size_bytes)

    def _refused(self, reason: str) -> ConfigurationError:
        return ConfigurationError(
            f"partition {self._number} of the image {self.manifest.name!r} can't be patched: {reason}"
        )

    def _check_superblock(self, data: bytes) -> int:
        """Return the time of the last write.

        The journal of a filesystem that wasn't unmounted is replayed at the next mount, over the patch.
        """
        if len(data) < _SUPERBLOCK_BYTES or struct.unpack_from("<H", data, 0x38)[0] != _MAGIC:
            raise self._refused("it has no ext4 filesystem: name another one in filesystem.partition")
        (state,) = struct.unpack_from("<H", data, 0x3A)
        (incompatible, read_only) = struct.unpack_from("<II", data, 0x60)
        (orphan,) = struct.unpack_from("<I", data, 0xE8)
        again = "shut the golden machine down, or run e2fsck -f on its disk, and pack it again"
        if incompatible & _RECOVER:
            raise self._refused(
                f"its ext4 filesystem wasn't unmounted, and its journal would undo the patch: {again}"
            )
        if not state & _CLEAN or state & _ERRORS or orphan or read_only & _ORPHAN_PRESENT:
            raise self._refused(f"its ext4 filesystem has errors, or wasn't unmounted: {again}")
        (time_s,) = struct.unpack_from("<I", data, 0x30)
        return int(time_s)

    def _plan(
        self, found: ExtFiles, settings: MachineSettings
    ) -> tuple[list[PlannedFile], dict[str, PlannedFile]]:
        """Return the files to write and the folders to make, parents first."""
        accounts = self._accounts(found)
        groups = self._ids(found, "/etc/group")
        name = settings.hostname
        names = f"{name}.{settings.domain} {name}" if settings.domain else name
        machine_id = blake3(settings.machine_id.encode(), derive_key_context=_ID_KEY).hexdigest(16)
        files = [
            PlannedFile("/etc/hostname", f"{name}\n".encode()),
            PlannedFile("/etc/hosts", _hosts(self._text(found, "/etc/hosts"), names).encode()),
            PlannedFile("/etc/machine-id", f"{machine_id}\n".encode(), 0o444),
        ]
        private = set()
        for index, user in enumerate(settings.users):
            account = accounts.get(user.name)
            if account is None:
                raise self._refused(
                    f"users[{index}]: it has no user {user.name!r} in /etc/passwd: make the user in the golden image"
                )
            if user.ssh_keys:
                keys = "".join(f"{key}\n" for key in user.ssh_keys).encode()
                ssh = posixpath.join(account.home, ".ssh")
                private.add(ssh)
                owner = account.user_id, account.group_id
                files.append(PlannedFile(f"{ssh}/authorized_keys", keys, 0o600, *owner))
        for index, file in enumerate(settings.files):
            user_name, group_name = file.owner.split(":")
            owner_account, group_id = accounts.get(user_name), groups.get(group_name)
            if owner_account is None or group_id is None:
                raise self._refused(f"files[{index}].owner: it has no such user or group as {file.owner}")
            content = file.content.encode()
            files.append(PlannedFile(file.path, content, int(file.mode, 8), owner_account.user_id, group_id))
        self._require_distinct(files)
        folders: dict[str, PlannedFile] = {}
        for planned in files:
            for folder in _parents(planned.path):
                if folder in folders or found.entry_untrusted(folder) is not None:
                    continue
                if folder in private:
                    folders[folder] = dataclasses.replace(planned, path=folder, mode=0o700)
                else:
                    folders[folder] = PlannedFile(folder, b"", 0o755)
        return [planned for planned in files if not self._is_there(found, planned)], folders

    def _require_distinct(self, files: list[PlannedFile]) -> None:
        paths = [planned.path for planned in files]
        for path in paths:
            if paths.count(path) > 1:
                raise self._refused(
                    f"{path} is declared twice: by files, and by the host name or a user's keys"
                )

    def _is_there(self, found: ExtFiles, planned: PlannedFile) -> bool:
        """Return whether the image has the file already; refuse what can't be replaced."""
        entry = found.entry_untrusted(planned.path)
        if entry is None:
            return False
        if not stat.S_ISREG(entry.mode):
            raise self._refused(
                f"{planned.path} isn't a regular file there: declare the file that it leads to"
            )
        if entry.has_attributes:
            raise self._refused(
                f"{planned.path} has extended attributes, such as an SELinux label, which a replaced file would lose: "
                "use a seed partition"
            )
        return (
            _has(entry, planned, stat.S_IFREG)
            and entry.size_bytes == len(planned.content)
            and (found.read_file_untrusted(planned.path, len(planned.content) + 1) == planned.content)
        )

    def _script(
        self, found: ExtFiles, folders: dict[str, PlannedFile], files: list[PlannedFile], fds: list[int]
    ) -> str:
        lines = [f"set_current_time @{self._time_s}"]

        def enter(path: str) -> str:
            parent, name = posixpath.split(path)
            lines.append(f'cd "{parent}"')
            return f'"{name}"'

        def own(name: str, planned: PlannedFile, kind: int) -> None:
            lines.append(f"sif {name} mode 0{kind | planned.mode:o}")
            lines.append(f"sif {name} uid {planned.user_id}")
            lines.append(f"sif {name} gid {planned.group_id}")

        for folder in folders.values():
            name = enter(folder.path)
            lines.append(f"mkdir {name}")
            own(name, folder, stat.S_IFDIR)
        for planned, fd in zip(files, fds, strict=True):
            name = enter(planned.path)
            if found.entry_untrusted(planned.path) is not None:
                lines.append(f"rm {name}")
            lines.append(f"write /proc/self/fd/{fd} {name}")
            own(name, planned, stat.S_IFREG)
        return "\n".join(lines) + "\n"

    def _require_written(
        self, found: ExtFiles, files: list[PlannedFile], folders: dict[str, PlannedFile]
    ) -> None:
        """Compare the result with the plan: debugfs continues after an error."""
        for planned, kind in (
            *((folder, stat.S_IFDIR) for folder in folders.values()),
            *((file, stat.S_IFREG) for file in files),
        ):
            entry = found.entry_untrusted(planned.path)
            content = planned.content
            if (
                entry is None
                or not _has(entry, planned, kind)
                or (
                    kind == stat.S_IFREG
                    and (found.read_file_untrusted(planned.path, len(content) + 1) or b"") != content
                )
            ):
                raise self._refused(
                    f"debugfs couldn't write {planned.path}: the filesystem is full or damaged; free space on the "
                    "golden machine, or check it with e2fsck -f"
                )

    def _text(self, found: ExtFiles, path: str) -> str:
        data = found.read_file_untrusted(path, _TEXT_BYTES_MAX + 1) or b""
        try:
            if len(data) <= _TEXT_BYTES_MAX:
                return data.decode()
        except UnicodeDecodeError:
            pass
        raise self._refused(f"its {path} isn't text, or has more than {_TEXT_BYTES_MAX >> 10} KiB")

    def _accounts(self, found: ExtFiles) -> dict[str, _Account]:
        accounts = {"root": _Account(0, 0, "/root")}
        for line in self._text(found, "/etc/passwd").splitlines():
            fields = line.split(":")
            if len(fields) != 7 or not (fields[2].isdecimal() and fields[3].isdecimal()):
                continue
            home = fields[5]
            if home.startswith("/") and posixpath.normpath(home) == home and not _UNQUOTABLE.search(home):
                accounts[fields[0]] = _Account(int(fields[2]), int(fields[3]), home)
        return accounts

    def _ids(self, found: ExtFiles, path: str) -> dict[str, int]:
        rows = (line.split(":") for line in self._text(found, path).splitlines())
        return {"root": 0, **{row[0]: int(row[2]) for row in rows if len(row) > 2 and row[2].isdecimal()}}


def _hosts(text: str, names: str) -> str:
    """Return /etc/hosts with the machine's own names, in the line that Debian has for them."""
    own = f"127.0.1.1\t{names}"
    lines = text.splitlines()
    places = [index for index, line in enumerate(lines) if _HOST_LINE.match(line)]
    if places:
        lines[places[0]] = own
        for index in reversed(places[1:]):
            del lines[index]
    else:
        lines.append(own)
    return "\n".join(lines) + "\n"


def _parents(path: str) -> list[str]:
    parents = []
    while (path := posixpath.dirname(path)) != "/":
        parents.append(path)
    return parents[::-1]


def _has(entry: ExtInode, planned: PlannedFile, kind: int) -> bool:
    return (entry.mode, entry.user_id, entry.group_id) == (
        kind | planned.mode,
        planned.user_id,
        planned.group_id,
    )
