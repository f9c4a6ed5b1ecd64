"""The shared libraries of the live system: the ones that its programs need, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from sender.netboot.host_programs import run_host_program

_ELF: Final = b"\x7fELF"
_NEEDED: Final = re.compile(r"\(NEEDED\)\s+Shared library: \[(.+?)\]")
_FILE: Final = "File: "
_FILES_PER_RUN: Final = 400
"""Arguments of one readelf: far below the kernel's limit, and few runs."""


def elf_files(root: Path) -> list[Path]:
    """Return the ELF files below a directory, links excluded."""
    return [
        path for path in sorted(root.rglob("*")) if not path.is_symlink() and path.is_file() and _is_elf(path)
    ]


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _ELF


def needed_libraries(files: Iterable[Path]) -> dict[Path, tuple[str, ...]]:
    """Return the names of the libraries that each ELF file needs (DT_NEEDED)."""
    paths = list(files)
    found: dict[Path, tuple[str, ...]] = {}
    for start in range(0, len(paths), _FILES_PER_RUN):
        chunk = paths[start : start + _FILES_PER_RUN]
        # With a single file readelf prints no name: the first one comes twice.
        output = run_host_program(["readelf", "--dynamic", "--wide", chunk[0], *chunk])
        for part in output.split(_FILE)[2:]:
            name, _, text = part.partition("\n")
            found[Path(name)] = tuple(_NEEDED.findall(text))
    return found


def unneeded_libraries(
    libraries: Mapping[str, Path], needs: Mapping[Path, Iterable[str]], roots: Iterable[Path]
) -> set[str]:
    """Return the libraries that no program needs, directly or through others.

    Args:
        libraries: files that a program may need, by name.
        needs: names of the libraries that each ELF file needs.
        roots: files that are there for their own sake.
    """
    reached: set[str] = set()
    waiting = [name for path in roots for name in needs.get(path, ())]
    while waiting:
        name = waiting.pop()
        if name in reached or name not in libraries:
            continue
        reached.add(name)
        waiting += needs.get(libraries[name].resolve(), ())
    return set(libraries) - reached


def missing_libraries(present: Iterable[str], needs: Mapping[Path, Iterable[str]]) -> dict[str, list[Path]]:
    """Return the libraries that are needed but missing, with the files that need them."""
    names = set(present)
    missing: dict[str, list[Path]] = {}
    for path, needed in needs.items():
        for name in set(needed) - names:
            missing.setdefault(name, []).append(path)
    return missing
