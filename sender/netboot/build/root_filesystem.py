"""The root filesystem of the live system: packages, agent, kernel modules and configuration in one directory."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from protocol.control.boot_parameters import BootParameters, format_boot_parameters
from protocol.errors import ConfigurationError
from protocol.program.trusted_keys_directory import KEY_FILE_SUFFIX, TRUSTED_KEYS_DIRECTORY
from protocol.trust.trusted_keys import TrustedKey
from sender.netboot.build import elf, kernel_modules, wheels
from sender.netboot.build.linear_algebra import replace_openblas
from sender.netboot.host_programs import run_host_program

BOOT_CONFIGURATION: Final = "etc/diskcast/boot.conf"
SITE: Final = "usr/lib/python3/dist-packages"
_LIVE_FILES: Final = "files"
"""Package data of ``receiver.live``: ``initrd/`` for the first stage, ``root/`` for the root filesystem."""
_FOLDERS: Final = (
    "dev", "etc/diskcast", "lib/firmware", "mnt", "proc", "root", "run", "sys", "tmp", "usr/local/bin", "var/lib",
    "var/log", "var/tmp",
)  # fmt: skip
_LAUNCHER: Final = "#!/usr/bin/python3\nfrom receiver.cli import main\n\nmain()\n"
_CONFIGURATION: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\ndisk:x:6:\nkmem:x:15:\ndialout:x:20:\ncdrom:x:24:\ntape:x:26:\naudio:x:29:\n"
    "video:x:44:\ninput:x:104:\nkvm:x:105:\nrender:x:106:\nsgx:x:107:\nlp:x:7:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/shadow": "root:*:1::::::\n",
}
"""Files that maintainer scripts would write; udev looks the groups up."""
_LINKS: Final = {"etc/mtab": "../proc/self/mounts", "usr/bin/sh": "busybox"}

_DLOPENED: Final = re.compile(r"(libnss_(dns|files)|libgcc_s|libisal|libkmod|libresolv)\.so")
"""Libraries that programs load by name at run time: name resolution, thread cancellation, the erasure code."""
_AUDITWHEEL: Final = ".libs"
"""Folders of libraries whose ELF headers auditwheel has rewritten: strip damages them."""


@dataclasses.dataclass(frozen=True, slots=True)
class BakedIn:
    """The operator's values in the live system; all are public.

    Attributes:
        servers: URLs of daemons.
        pins: their certificates.
        keys: keys whose images the agent accepts.
    """

    servers: tuple[str, ...]
    pins: tuple[str, ...]
    keys: tuple[TrustedKey, ...]

    def boot_configuration(self) -> str:
        """Return the text of ``/etc/diskcast/boot.conf``, in the words of the kernel command line."""
        words = format_boot_parameters(BootParameters(servers=self.servers, pins=self.pins))
        return "".join(f"{word}\n" for word in words.split())


def live_files(part: str) -> dict[str, bytes]:
    """Return the live system's own files by their path; ``part`` is ``initrd`` or ``root``."""
    folder = wheels.installed_package("receiver.live") / _LIVE_FILES / part
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def file_mode(content: bytes) -> int:
    """Return the mode of one of the live system's own files: scripts are executable."""
    return 0o755 if content.startswith(b"#!") else 0o644


def python_of(root: Path) -> tuple[int, int]:
    """Return the version of the Python in a root filesystem."""
    [found] = [path.name for path in (root / "usr/bin").iterdir() if re.fullmatch(r"python3\.\d+", path.name)]
    return 3, int(found.partition(".")[2])


def add_agent(root: Path, site_wheels: Iterable[wheels.Wheel], work: Path, *, strip: bool) -> None:
    """Add the agent with its wheels, without the parts that it never uses."""
    site = root / SITE
    site.mkdir(parents=True)
    wheels.unpack_wheels(site_wheels, site)
    libraries = elf.elf_files(site)
    replace_openblas(site, libraries, work)
    if strip:
        strippable = [
            path for path in libraries if path.exists() and not path.parent.name.endswith(_AUDITWHEEL)
        ]
        run_host_program(["strip", "--strip-unneeded", *strippable])
    wheels.copy_agent(site)
    launcher = root / "usr/bin/diskcast-agent"
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)


def add_kernel_modules(root: Path, kernel: Path, release: str, paths: Sequence[str]) -> None:
    """Add kernel modules and their indexes."""
    target = root / "usr/lib/modules" / release
    kernel_modules.copy_modules(kernel / "usr/lib/modules" / release, target, paths)
    kernel_modules.index_modules(root, release)


def configure(root: Path, baked_in: BakedIn) -> None:
    """Add directories and configuration."""
    for name in _FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, text in _CONFIGURATION.items():
        (root / name).write_text(text)
    for name, target in _LINKS.items():
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    for name, content in live_files("root").items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(file_mode(content))
    (root / BOOT_CONFIGURATION).write_text(baked_in.boot_configuration())
    folder = root / str(TRUSTED_KEYS_DIRECTORY).lstrip("/")
    folder.mkdir(parents=True)
    for key in baked_in.keys:
        (folder / f"{key.name}{KEY_FILE_SUFFIX}").write_text(key.file_text())


def remove_unneeded_libraries(root: Path, note: Callable[[str], None]) -> None:
    """Remove the shared libraries that no program of the live system needs.

    Raises:
        ConfigurationError: a library is missing that one of them needs.
    """
    programs = elf.elf_files(root / "usr")
    needs = {path.resolve(): needed for path, needed in elf.needed_libraries(programs).items()}
    folders = [*(root / "usr/lib").glob("*-linux-gnu"), root / "usr/lib", root / "usr/lib64"]
    libraries = {path.name: path for folder in folders for path in folder.glob("*.so*") if path.exists()}
    inside = {path.resolve() for path in libraries.values()}
    roots = [path for path in needs if path not in inside]
    roots += [path.resolve() for name, path in libraries.items() if _DLOPENED.match(name)]
    unneeded = elf.unneeded_libraries(libraries, needs, roots)
    kept = {path.resolve() for name, path in libraries.items() if name not in unneeded}
    kept |= {path for path in roots if path in inside}
    removed = [
        path for path in libraries.values() if path.resolve() not in kept and not path.name.startswith("ld-")
    ]
    for path in removed:
        path.unlink()
    note(f"{len(removed)} libraries that nothing needs removed")
    present = {path.name for path in root.rglob("*.so*")}
    missing = elf.missing_libraries(present, {path: needs[path] for path in needs if path.exists()})
    if missing:
        name, users = next(iter(missing.items()))
        raise ConfigurationError(f"{users[0].relative_to(root.resolve())} needs {name}, which no package has")


def compile_python(root: Path, run_inside: Callable[[Sequence[str]], str]) -> None:
    """Compile all Python modules, with their own Python: the live system has no time for it at each boot."""
    python = "python{}.{}".format(*python_of(root))
    command = [f"/usr/bin/{python}", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    # Two processes, by this program: compileall's own need /dev/shm.
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda folder: run_inside([*command, folder]), (f"/usr/lib/{python}", f"/{SITE}")))


def normalise_modes(root: Path) -> None:
    """Give every file and directory the mode that doesn't depend on this user's umask or on the checkout."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def part_sizes(root: Path) -> dict[str, int]:
    """Return the size of each part of a root filesystem in bytes, uncompressed; together they are all of it."""
    python = root / "usr/lib" / "python{}.{}".format(*python_of(root))
    parts = {
        "agent and its wheels": tree_bytes(root / SITE),
        "kernel modules": tree_bytes(root / "usr/lib/modules"),
        "Python": tree_bytes(python),
    }
    return parts | {"programs and libraries": tree_bytes(root) - sum(parts.values())}


def tree_bytes(folder: Path) -> int:
    """Return the size of all files below a directory."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
