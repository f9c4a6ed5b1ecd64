"""The changes that generalise one ext filesystem: found by the rules, then made by debugfs in the sandbox."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable
from typing import Final

from protocol.constants import KIB
from protocol.errors import ImageError
from sender.imaging.contents.ext_files import ExtFiles
from sender.imaging.editing.ext_editor import edit_ext, quoted
from sender.imaging.editing.partition_copy import PartitionCopy
from sender.imaging.generalise.file_search import FileSearch, FoundFile
from sender.imaging.generalise.traces import (
    REMARKS,
    RULES,
    SSH_KEY_MAKERS,
    UNINITIALIZED,
    Action,
    FileRule,
    TraceKind,
)

_CONTENT_BYTES: Final = 64 * KIB
_MACHINE_ID_BYTES: Final = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A change of a file, of a folder with its content, or of a range.

    Attributes:
        place: partition number; 0 for the whole disk.
        path: path in the system, or a description of the range.
        file_count: files and folders that it has; 0 for a range.
        size_bytes: length of the removed content.
    """

    kind: TraceKind
    action: Action
    place: int
    path: str
    file_count: int = 0
    size_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class FilePlan:
    """Changes of one filesystem, the files to remove, each folder after its content, and the files to empty."""

    changes: tuple[Change, ...]
    removed: tuple[FoundFile, ...]
    emptied: tuple[FoundFile, ...]
    remarks: tuple[str, ...]


def plan_files_untrusted(files: ExtFiles, mount_point: str, place: int) -> FilePlan:
    """Find the files to change.

    Raises:
        ExtError: the filesystem is damaged, or has unsupported features.
    """
    search = FileSearch(files, mount_point)
    changes: list[Change] = []
    removed: dict[bytes, FoundFile] = {}
    emptied: dict[bytes, FoundFile] = {}
    for rule in RULES:
        for found in _matches(search, rule):
            if rule.action is Action.EMPTIED:
                emptied[found.path] = found
                changes.append(_change(rule, place, mount_point, found, [found]))
                continue
            tree = [each for each in search.tree_untrusted(found) if each.path not in removed]
            if tree:
                removed.update((each.path, each) for each in tree)
                changes.append(_change(rule, place, mount_point, found, tree))
    remarks = [
        f"{_path(mount_point, found)} {remark.text}"
        for remark in REMARKS
        for found in search.matches_untrusted(remark.pattern)
        if found.path not in removed and _contains(search, found, remark.containing)
    ]
    if _lacks_key_maker(search):
        remarks.append(
            "no program of the image makes new SSH host keys at boot: install cloud-init, or add a unit that runs "
            "`ssh-keygen -A`"
        )
    return FilePlan(tuple(changes), tuple(removed.values()), tuple(emptied.values()), tuple(remarks))


def _lacks_key_maker(search: FileSearch) -> bool:
    """Return whether the filesystem has an SSH server, and nothing known that makes its keys."""
    has_server = any(search.matches_untrusted("/etc/ssh/sshd_config"))
    return has_server and not any(any(search.matches_untrusted(pattern)) for pattern in SSH_KEY_MAKERS)


def _matches(search: FileSearch, rule: FileRule) -> Iterable[FoundFile]:
    for found in search.matches_untrusted(rule.pattern):
        if found.path.rpartition(b"/")[2].decode(errors="replace") in rule.except_names:
            continue
        if not rule.everything and not found.is_regular:
            continue
        if rule.containing is not None and not _contains(search, found, rule.containing):
            continue
        if rule.action is Action.EMPTIED and not _has_content(search, found):
            continue
        yield found


def _contains(search: FileSearch, found: FoundFile, pattern: re.Pattern[bytes]) -> bool:
    return found.is_regular and pattern.search(search.start_of_untrusted(found, _CONTENT_BYTES)) is not None


def _has_content(search: FileSearch, found: FoundFile) -> bool:
    if found.inode.size_bytes > _MACHINE_ID_BYTES:
        return True
    return search.start_of_untrusted(found, _MACHINE_ID_BYTES).strip() not in (b"", UNINITIALIZED)


def _change(
    rule: FileRule, place: int, mount_point: str, found: FoundFile, tree: Iterable[FoundFile]
) -> Change:
    tree = list(tree)
    size_bytes = sum(each.inode.size_bytes for each in tree if each.is_regular)
    return Change(rule.kind, rule.action, place, _path(mount_point, found), len(tree), size_bytes)


def _path(mount_point: str, found: FoundFile) -> str:
    path = mount_point.rstrip("/") + found.path.decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in path)


def apply_files(copy: PartitionCopy, plan: FilePlan) -> None:
    """Make the changes.

    Inodes are cleared too, since short links, attributes and small files are in them. A file with further names stays
    under those.

    Raises:
        ConfigurationError: a file has a name that debugfs doesn't accept.
        ImageError: debugfs failed.
        SandboxUnavailableError: this kernel can't confine it.
    """
    commands = []
    for found in plan.emptied:
        commands += [b"punch <%d> 0" % found.number, b"set_inode_field <%d> size 0" % found.number]
    names = collections.Counter(found.number for found in plan.removed if not found.is_folder)
    for found in plan.removed:
        verb = b"rmdir" if found.is_folder else b"rm"
        commands.append(verb + b" " + quoted(found.path))
    links = {found.number: found.inode.link_count for found in plan.removed}
    gone = [number for number in links if number not in names or names[number] >= links[number]]
    commands += [b"clri <%d>" % number for number in gone]
    if commands:
        edit_ext(copy, commands)


def require_applied(plan: FilePlan) -> None:
    """Check the plan of an edited filesystem: it has nothing left.

    Raises:
        ImageError: debugfs left a file.
    """
    if plan.changes:
        raise ImageError(f"{plan.changes[0].path} couldn't be {plan.changes[0].action.value}")
