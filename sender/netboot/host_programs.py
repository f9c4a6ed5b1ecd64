"""Running this machine's programs to build a boot medium, with errors that name the missing Debian package."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from protocol.errors import ConfigurationError, MissingDependencyError

PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "apt-cache": "apt",
        "apt-get": "apt",
        "as": "binutils",
        "depmod": "kmod",
        "dpkg-deb": "dpkg",
        "grub-mkimage": "grub-common",
        "ld": "binutils",
        "mcopy": "mtools",
        "mkfs.vfat": "dosfstools",
        "mksquashfs": "squashfs-tools",
        "mmd": "mtools",
        "readelf": "binutils",
        "sfdisk": "fdisk",
        "strip": "binutils",
        "unshare": "util-linux",
        "xorriso": "xorriso",
    }
)
"""The Debian package of each program."""

_SYSTEM_PATH: Final = ("/usr/sbin", "/sbin")
"""Missing in the search path of most users."""
_LAST_LINES_MAX: Final = 6
_LAST_CHARS_MAX: Final = 800


def find_program(name: str) -> str | None:
    """Return the path of a program; None if it isn't installed."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_PATH]))


def require_programs(names: Iterable[str], purpose: str) -> None:
    """Refuse when one of ``names`` isn't installed.

    Raises:
        MissingDependencyError: the message names the Debian packages of all that are missing.
    """
    missing = [name for name in names if find_program(name) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES[name] for name in missing}))
        raise MissingDependencyError(
            f"{purpose} needs {', '.join(missing)}, not installed here: apt install {packages}"
        )


def run_host_program(
    argv: Sequence[str | Path],
    *,
    folder: Path | None = None,
    text: str | None = None,
    variables: Mapping[str, str | None] | None = None,
) -> str:
    """Run a program in the C locale and return its standard output.

    Args:
        argv: program and arguments; no shell.
        folder: its working directory.
        text: its standard input; nothing by default.
        variables: changes of this process's environment; None removes a variable.

    Raises:
        MissingDependencyError: it isn't installed.
        ConfigurationError: it failed; the message has its last lines.
    """
    name = str(argv[0])
    require_programs([name], "this command")
    path = find_program(name)
    assert path is not None
    environment = {**os.environ, "LC_ALL": "C", **(variables or {})}
    done = subprocess.run(
        [path, *map(str, argv[1:])],
        cwd=folder,
        input=text or "",
        capture_output=True,
        text=True,
        errors="replace",
        env={variable: value for variable, value in environment.items() if value is not None},
        check=False,
    )
    if done.returncode:
        raise ConfigurationError(f"{name} failed: {last_lines(done.stderr or done.stdout)}")
    return done.stdout


def last_lines(output: str) -> str:
    """Return the last lines of a program's output as one line."""
    lines = [" ".join(line.split()) for line in output.splitlines()]
    return " / ".join([line for line in lines if line][-_LAST_LINES_MAX:])[-_LAST_CHARS_MAX:] or "no output"
