"""The agent's part of ``requirements.lock``: the wheels of the live system, with their hashes.

An installed diskcast has no checkout and no ``requirements.lock``, so the part is a file of this package,
``agent.lock``. ``docs/generate.py`` writes it, and ``make lint`` checks that it is fresh.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

NOT_IN_LIVE_SYSTEM: Final = frozenset({"markdown-it-py", "mdurl", "pycparser", "pygments"})
"""Packages that rich needs to show Markdown and source code, and cffi to compile: the agent does neither."""

_BLOCK: Final = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?: ; (?P<marker>[^\\\n]+?))? \\\n(?P<rest>(?:    .*\n)+)",
    re.MULTILINE,
)
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_VIA: Final = re.compile(r"^    #(?: via)?\s+([A-Za-z0-9._-]+)", re.MULTILINE)
_PYTHON_BOUND: Final = re.compile(r"python_full_version (<|>=) '(\d+)\.(\d+)'")


@dataclasses.dataclass(frozen=True, slots=True)
class LockedPackage:
    """A package of a lock file.

    Attributes:
        name: in its normalised form.
        version: the only version that may be installed.
        marker: PEP 508's condition under which it is needed; empty if it always is.
        hashes: SHA-256 of the files of this version.
        needed_by: packages that need it.
    """

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    needed_by: frozenset[str]

    def requirement(self) -> str:
        """Return its lines of a requirements file."""
        condition = f" ; {self.marker}" if self.marker else ""
        hashes = "".join(f" \\\n    --hash=sha256:{value}" for value in self.hashes)
        return f"{self.name}=={self.version}{condition}{hashes}\n"

    def is_for_python(self, version: tuple[int, int]) -> bool:
        """Return whether a Python needs it: agent.lock has no other markers than bounds of Python's version."""
        bounds = _PYTHON_BOUND.findall(self.marker)
        return all(
            (version < (int(major), int(minor))) == (operator == "<") for operator, major, minor in bounds
        )


def normalised_name(name: str) -> str:
    """Return a package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_lock(text: str) -> Iterator[LockedPackage]:
    """Yield the packages of a lock file that ``uv pip compile --generate-hashes`` wrote."""
    if not text.endswith("\n"):
        text += "\n"
    for block in _BLOCK.finditer(text):
        yield LockedPackage(
            normalised_name(block["name"]),
            block["version"],
            block["marker"] or "",
            tuple(_HASH.findall(block["rest"])),
            frozenset(map(normalised_name, _VIA.findall(block["rest"]))),
        )


def agent_part(lock: Collection[LockedPackage], direct: Collection[str]) -> list[LockedPackage]:
    """Return the packages that the agent needs, in the order of the lock file.

    Args:
        lock: all packages.
        direct: names of the packages that diskcast needs without an extra.
    """
    needs: dict[str, set[str]] = {}
    for package in lock:
        for parent in package.needed_by:
            needs.setdefault(parent, set()).add(package.name)
    found: set[str] = set()
    waiting = set(map(normalised_name, direct))
    while waiting:
        name = waiting.pop()
        if name in found or name in NOT_IN_LIVE_SYSTEM:
            continue
        found.add(name)
        waiting |= needs.get(name, set())
    return [package for package in lock if package.name in found]


def for_python(lock: Collection[LockedPackage], version: tuple[int, int]) -> Mapping[str, LockedPackage]:
    """Return the packages for a version of Python, by name."""
    return {package.name: package for package in lock if package.is_for_python(version)}
