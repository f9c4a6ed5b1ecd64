"""The agent's wheels: downloaded by pip with the hashes of ``agent.lock``, unpacked without their tests and headers."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
import sys
import zipfile
from collections.abc import Collection, Iterable, Mapping
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Final

from protocol.errors import ConfigurationError, MissingDependencyError
from sender.netboot.build.lock_part import LockedPackage, for_python, normalised_name, parse_lock
from sender.netboot.host_programs import find_program, run_host_program

LOCK_FILE: Final = "agent.lock"
AGENT_PACKAGES: Final = ("protocol", "receiver")
"""Packages of this program that the agent consists of."""
_AGENT_UNWANTED: Final = ("sending",)
"""Parts of them that only senders use."""

_UNWANTED: Final = re.compile(
    r"(^|/)(tests|_tests|testing|include|__pycache__)/|\.(pyi|pxd|c|h|hpp|a|md)$|py\.typed$|"
    r"\.dist-info/(?!METADATA$)|^numpy/(f2py|distutils|_pyinstaller|doc|_core/lib|random/lib|random/_examples)/|"
    r"^cffi/|^[^/]+\.data/(scripts|headers|data)/"
)
"""Files of wheels that are for developers and compilers."""
_WHEEL: Final = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl")
_GLIBC_OLDEST: Final = 17
"""manylinux2014's glibc, 2.17."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wheel:
    """A downloaded wheel."""

    name: str
    version: str
    path: Path
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True)
class WheelTarget:
    """The system that wheels are for.

    Attributes:
        python: version of its Python.
        glibc_minor: minor version of its C library, for example 36 of 2.36.
        machine: as ``uname -m`` shows it.
    """

    python: tuple[int, int]
    glibc_minor: int
    machine: str

    @property
    def key(self) -> str:
        """Name of the directory of its wheels in a cache."""
        major, minor = self.python
        return f"cp{major}{minor}-glibc2.{self.glibc_minor}-{self.machine}"

    def pip_options(self) -> list[str]:
        """Return the options by which pip chooses files for it instead of for this machine."""
        platforms = [
            f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc_minor, _GLIBC_OLDEST - 1, -1)
        ]
        major, minor = self.python
        words = ["--implementation", "cp", "--python-version", f"{major}.{minor}"]
        for platform in (*platforms, f"manylinux2014_{self.machine}"):
            words += ["--platform", platform]
        return words


def locked_packages(python: tuple[int, int]) -> Mapping[str, LockedPackage]:
    """Return the agent's packages for a version of Python, by name."""
    return for_python(list(parse_lock(lock_text())), python)


def lock_text() -> str:
    """Return the lock file of the live system."""
    return files(__package__).joinpath(LOCK_FILE).read_text(encoding="utf-8")


def download_wheels(locked: Mapping[str, LockedPackage], target: WheelTarget, cache: Path) -> list[Wheel]:
    """Download the wheels that the cache doesn't have, and check the hash of each.

    Raises:
        ConfigurationError: a package has no wheel for the target, or a file has none of the locked hashes.
        MissingDependencyError: pip isn't installed.
    """
    folder = cache / "wheels" / target.key
    folder.mkdir(parents=True, exist_ok=True)
    found = _cached_wheels(folder, locked)
    missing = [locked[name] for name in sorted(locked.keys() - found.keys())]
    if missing:
        requirements = folder / "requirements.txt"
        text = "".join(dataclasses.replace(package, marker="").requirement() for package in missing)
        requirements.write_text(text)
        argv = [*_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
        argv += ["--only-binary", ":all:", "--require-hashes", *target.pip_options()]
        try:
            run_host_program([*argv, "--dest", str(folder), "--requirement", str(requirements)])
        except ConfigurationError as error:
            raise ConfigurationError(
                f"can't download the agent's wheels: {error}; check pip's index"
            ) from error
        finally:
            requirements.unlink()
        found = _cached_wheels(folder, locked)
    lost = sorted(locked.keys() - found.keys())
    if lost:
        raise ConfigurationError(
            f"pip downloaded no wheel of {', '.join(lost)} with a locked hash: empty {folder}"
        )
    return [found[name] for name in sorted(found)]


def _cached_wheels(folder: Path, locked: Mapping[str, LockedPackage]) -> dict[str, Wheel]:
    found = {}
    for path in sorted(folder.glob("*.whl")):
        match = _WHEEL.fullmatch(path.name)
        package = locked.get(normalised_name(match["name"])) if match else None
        if match is None or package is None or package.version != match["version"]:
            continue
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 in package.hashes:
            found[package.name] = Wheel(package.name, package.version, path, sha256)
    return found


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if find_program(name):
            return [name]
    raise MissingDependencyError(
        "building a boot medium needs pip, not installed here: apt install python3-pip, or python3 -m ensurepip in "
        "diskcast's virtual environment"
    )


def unpack_wheels(wheels: Iterable[Wheel], site: Path) -> None:
    """Unpack wheels into a directory of Python packages."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel.path) as archive:
            for entry in archive.infolist():
                name = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", entry.filename)
                if entry.is_dir() or _UNWANTED.search(name) or ".." in PurePosixPath(name).parts:
                    continue
                target = site / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)


def installed_package(name: str) -> Path:
    """Return the directory of a Python package of this installation, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(f"this installation of diskcast has no {name}: install it again")
    return Path(spec.submodule_search_locations[0])


def copy_agent(site: Path, packages: Collection[str] = AGENT_PACKAGES) -> None:
    """Copy the agent of this installation into a directory of Python packages, with its name and version."""
    for name in packages:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", *_AGENT_UNWANTED)
        shutil.copytree(installed_package(name), site / name, ignore=ignored)
    version = importlib.metadata.version("diskcast")
    metadata = site / f"diskcast-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: diskcast\nVersion: {version}\n")
