"""Debian's packages for the live system, by apt: from this machine's own sources, or from those of ``--mirror``.

apt checks signatures and hashes with this machine's keys and configuration, proxies included, but with an empty system
and a cache of its own; nothing on this machine changes, and no root rights are needed. This machine's package lists are
used as they are, so the versions are those that ``apt install`` would install here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from sender.netboot.host_programs import run_host_program

COMPONENTS: Final = ("main", "non-free-firmware")
"""Components of a mirror: firmware is in the second one."""
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SIMULATED: Final = re.compile(r"^Inst (\S+) \((\S+) ", re.MULTILINE)
_FIELD: Final = re.compile(r"^([A-Za-z0-9-]+): (.*)$", re.MULTILINE)

_PREFERENCES: Final = """\
Package: *
Pin: release o=Debian,n={suite}*
Pin-Priority: 900

Package: *
Pin: release o=*
Pin-Priority: -1
"""
"""Only Debian's own packages of one suite, with its updates: third parties' sources stay out of the live system."""


@dataclasses.dataclass(frozen=True, slots=True)
class DebianPackage:
    """A package, as the archive's index has it."""

    name: str
    version: str
    architecture: str
    sha256: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        """Name of its file, as apt writes it."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


class PackageSource:
    """apt with an empty system: finds packages, and downloads them into a cache."""

    def __init__(
        self, work: Path, cache: Path, suite: str, architecture: str, mirrors: Sequence[str] = ()
    ) -> None:
        """Prepare apt's directories.

        Args:
            work: a directory of this build.
            cache: a directory for downloaded packages, kept between builds.
            suite: codename of the release.
            architecture: Debian's name of it.
            mirrors: URLs of mirrors, lines of sources.list(5), or files of sources; empty for this machine's own.
        """
        self._suite = suite
        self._work = work
        self.archives = cache / "packages"
        for directory in (self.archives, work / "cache" / "archives" / "partial", work / "lists" / "partial"):
            directory.mkdir(parents=True, exist_ok=True)
        (work / "status").write_text("")
        (work / "preferences").write_text(_PREFERENCES.format(suite=suite))
        options = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "true",
            "Dir::Cache": f"{work / 'cache'}",
            "Dir::Etc::Preferences": f"{work / 'preferences'}",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State::status": f"{work / 'status'}",
            # The user _apt has no access to a private directory of another user, root's included.
            "APT::Sandbox::User": "root",
        }
        self._own_sources = not mirrors
        if mirrors:
            options |= {"Dir::State::Lists": f"{work / 'lists'}"} | self._write_sources(mirrors)
        self._options = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]

    def update(self) -> None:
        """Download the lists of the mirrors; this machine's own lists are used as they are."""
        if not self._own_sources:
            self._run("apt-get", "update", "--quiet=2")

    def resolve(self, names: Collection[str]) -> list[str]:
        """Return packages with everything that they depend on, as ``NAME=VERSION``.

        Raises:
            ConfigurationError: the sources don't have one.
        """
        output = self._run("apt-get", "install", "--simulate", "--quiet", *sorted(names))
        found = _SIMULATED.findall(output)
        return [f"{name}={version}" for name, version in found]

    def show(self, names: Sequence[str]) -> list[DebianPackage]:
        """Return single packages, by name.

        Raises:
            ConfigurationError: the sources don't have one.
        """
        output = self._run("apt-cache", "show", "--no-all-versions", *names)
        packages = {}
        for text in output.strip().split("\n\n"):
            fields = dict(_FIELD.findall(text))
            package = DebianPackage(
                fields["Package"],
                fields["Version"],
                fields["Architecture"],
                fields["SHA256"],
                int(fields["Size"]),
            )
            packages[package.name] = package
        return [packages[name] for name in sorted(packages)]

    def newest(self, pattern: re.Pattern[str], meta_package: str) -> str:
        """Return the name of the package that a package depends on and that matches ``pattern``.

        Raises:
            ConfigurationError: the sources don't have it.
        """
        output = self._run("apt-cache", "depends", "--important", meta_package)
        found = pattern.search(output)
        if found is None:
            raise ConfigurationError(f"{meta_package} depends on no kernel: use another --suite or --mirror")
        return found[0]

    def available(self, names: Iterable[str]) -> list[str]:
        """Return those of ``names`` that the sources have."""
        known = set(self._run("apt-cache", "pkgnames").split())
        return [name for name in names if name in known]

    def download(self, packages: Iterable[DebianPackage]) -> int:
        """Download packages that the cache doesn't have, and return the number of bytes.

        Raises:
            ConfigurationError: one can't be downloaded.
        """
        missing = [package for package in packages if not self._is_cached(package)]
        if missing:
            names = [f"{package.name}={package.version}" for package in missing]
            self._run("apt-get", "download", "--quiet=2", *names, folder=self.archives)
        for package in missing:
            if not self._is_cached(package):
                raise ConfigurationError(
                    f"apt downloaded another {package.name} than its lists name: run `apt-get update` and build again"
                )
        return sum(package.size_bytes for package in missing)

    def path(self, package: DebianPackage) -> Path:
        """Return the path of a downloaded package."""
        return self.archives / package.file_name

    def _is_cached(self, package: DebianPackage) -> bool:
        path = self.path(package)
        if not path.is_file() or path.stat().st_size != package.size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256

    def _write_sources(self, mirrors: Sequence[str]) -> dict[str, str]:
        folder = self._work / "sources"
        folder.mkdir(exist_ok=True)
        for index, mirror in enumerate(mirrors):
            if Path(mirror).is_file():
                # apt ignores files with other suffixes, and reads the two formats by them.
                suffix = ".sources" if mirror.endswith(".sources") else ".list"
                shutil.copyfile(mirror, folder / f"{index}{suffix}")
                continue
            line = mirror
            if not mirror.startswith("deb "):
                signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
                line = f"deb {signed}{mirror} {self._suite} {' '.join(COMPONENTS)}"
            (folder / f"{index}.list").write_text(f"{line}\n")
        return {"Dir::Etc::SourceList": "/dev/null", "Dir::Etc::SourceParts": f"{folder}"}

    def _run(self, *argv: str, folder: Path | None = None) -> str:
        try:
            return run_host_program([argv[0], *self._options, *argv[1:]], folder=folder)
        except ConfigurationError as error:
            hint = (
                "run `apt-get update`, or give --mirror"
                if self._own_sources
                else "check --mirror and --suite"
            )
            raise ConfigurationError(
                f"can't get packages of Debian {self._suite}: {error}; {hint}"
            ) from error


def this_suite() -> str:
    """Return the codename of this machine's Debian release.

    Raises:
        ConfigurationError: this machine doesn't run a release of Debian.
    """
    fields: dict[str, str] = {}
    for path in (Path("/etc/os-release"), Path("/usr/lib/os-release")):
        if path.is_file():
            fields = dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', path.read_text(), re.MULTILINE))
            break
    if fields.get("ID") != "debian" or not fields.get("VERSION_CODENAME"):
        name = fields.get("PRETTY_NAME") or "an unknown system"
        raise ConfigurationError(
            f"this machine runs {name}, not a release of Debian: give --suite, for example bookworm, and --mirror"
        )
    return fields["VERSION_CODENAME"]
