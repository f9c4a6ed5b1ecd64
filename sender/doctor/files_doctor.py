"""Check the files of the daemon: secrets, state directory, image folders and cache."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
from pathlib import Path
from typing import Final

from protocol.constants import GIB, MIB
from protocol.program.findings import Finding, fail, ok, warn
from protocol.shared.units import format_bytes
from sender.config.server_config import ServerConfig

STATE_FREE_BYTES_MIN: Final = 64 * MIB
"""The history of a cast takes kilobytes; with less free space the database's log hardly fits."""
STATE_FREE_BYTES_WANTED: Final = GIB
_OTHERS: Final = stat.S_IRWXO


def judge_permissions(config: ServerConfig, config_path: Path | None) -> list[Finding]:
    """Check who can read the secrets, and warn root that the daemon's user has fewer rights."""
    found = []
    secret = config.server.database_password_file
    if secret is not None:
        found.append(_private("database password", secret))
    elif config_path is not None and config.server.database_shown != config.server.database:
        found.append(_private("configuration file", config_path, why="it contains the database password"))
    state = config.server.state_directory
    if os.access(state, os.R_OK | os.X_OK):
        found += [_private(f"token file {path.name}", path) for path in sorted(state.glob("*token*"))]
    if os.geteuid() == 0 and (name := _service_user()) is not None:
        detail = f"running as root, which can read and write everything; the daemon's user {name} can't"
        found.append(warn("user", detail, f"runuser -u {name} -- diskcast doctor --server"))
    return found


def _private(check: str, path: Path, why: str = "") -> Finding:
    """Check that other users can't read a secret."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return fail(check, f"{path}: {error.strerror}", f"ls -l {path}")
    if mode & _OTHERS:
        reason = f": {why}" if why else ""
        return fail(check, f"every user of this machine can read {path}{reason}", f"chmod o-rwx {path}")
    return ok(check, f"other users can't read {path}")


def _service_user() -> str | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("diskcast").pw_name
    return None


def judge_state_directory(state: Path) -> list[Finding]:
    """Check that the daemon can write its state, and that there is enough space."""
    check = "state directory"
    parent = _existing_parent(state)
    if not os.access(parent, os.W_OK | os.X_OK):
        fix = f"install -d -m 750 -o {_user()} {state}, or change server.state_directory"
        return [fail(check, f"{_user()} can't write to {parent}", fix)]
    if not parent.is_dir():
        return [fail(check, f"{parent} isn't a folder", "change server.state_directory")]
    created = "" if state.exists() else "; created at the first start"
    found = [ok(check, f"{state}, writable{created}")]
    if state.exists() and state.stat().st_mode & stat.S_IWOTH:
        detail = f"every user of this machine can replace the database in {state}"
        found.append(fail("state directory's permissions", detail, f"chmod 750 {state}"))
    free_bytes = shutil.disk_usage(parent).free
    detail = f"{format_bytes(free_bytes)} free for database and history"
    fix = f"free some space on the filesystem of {parent}: df -h {parent}"
    if free_bytes < STATE_FREE_BYTES_MIN:
        found.append(fail("space for the state", detail, fix))
    elif free_bytes < STATE_FREE_BYTES_WANTED:
        found.append(warn("space for the state", detail, fix))
    else:
        found.append(ok("space for the state", detail))
    return found


def judge_library(config: ServerConfig) -> list[Finding]:
    """Check that images can be read, and that remote ones fit in the cache."""
    found = [
        _folder(folder, created_by_daemon=folder == config.server.state_directory / "images")
        for folder in config.library.folders
    ]
    if config.library.remotes:
        found.append(_cache(config.library.cache_directory, config.library.cache_bytes))
    return found


def _folder(folder: Path, *, created_by_daemon: bool) -> Finding:
    check = f"images in {folder}"
    try:
        names = [entry.path for entry in os.scandir(folder) if entry.name.endswith(".dci")]
    except FileNotFoundError:
        if created_by_daemon:
            return ok(check, "created at the first start")
        return fail(check, "the folder doesn't exist", f"mkdir -p {folder}, or change library.folders")
    except OSError as error:
        return fail(check, f"can't read it: {error.strerror}", f"let {_user()} read it: ls -ld {folder}")
    unreadable = [name for name in names if not os.access(name, os.R_OK)]
    if unreadable:
        detail = f"{_user()} can't read {len(unreadable)} of {len(names)} images, such as {Path(unreadable[0]).name}"
        return fail(check, detail, f"let {_user()} read them: chmod a+r {unreadable[0]}")
    if not names:
        return warn(check, "no image yet", f"diskcast pack SOURCE -o {folder}/NAME.dci")
    return ok(check, f"{len(names)} image{'' if len(names) == 1 else 's'}")


def _cache(cache: Path, limit_bytes: int) -> Finding:
    check = "space for fetched images"
    parent = _existing_parent(cache)
    if not os.access(parent, os.W_OK | os.X_OK):
        fix = f"install -d -m 750 -o {_user()} {cache}, or change library.cache_directory"
        return fail(check, f"{_user()} can't write to {parent}", fix)
    kept_bytes = (
        sum(entry.stat().st_size for entry in os.scandir(cache) if entry.is_file()) if cache.is_dir() else 0
    )
    room_bytes = shutil.disk_usage(parent).free + kept_bytes
    detail = f"{format_bytes(room_bytes)} on its disk; library.cache_size is {format_bytes(limit_bytes)}"
    if room_bytes < limit_bytes:
        return warn(
            check, detail, "reduce library.cache_size, or move library.cache_directory to another disk"
        )
    return ok(check, detail)


def _existing_parent(path: Path) -> Path:
    """Return ``path``, or its nearest existing parent."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user without a name, as in containers
        return str(os.geteuid())
