"""Running programs of the live system on this machine: with its root filesystem as their own, and without a network."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from sender.netboot.host_programs import run_host_program

ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # compiled modules that don't depend on the run
}


class InsideRunner:
    """Runs programs with a directory as their root filesystem."""

    def __init__(self, root: Path) -> None:
        """Choose the directory."""
        self._root = root

    def run(self, argv: Sequence[str]) -> str:
        """Run a program and return its output.

        Root may have no right to make namespaces, for example in a container, but may chroot; others may make a user
        namespace, and chroot there.

        Raises:
            ConfigurationError: it failed, or this user may not run it.
        """
        is_root = os.geteuid() == 0
        words = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        enter: list[str | Path] = ["unshare", "--map-root-user", "--root", self._root, "--wd", "/"]
        if is_root:
            enter = ["chroot", self._root]
        try:
            return run_host_program(["env", "--ignore-environment", *words, *enter, *argv])
        except ConfigurationError as error:
            hint = "" if is_root else "; without user namespaces, build as root"
            raise ConfigurationError(
                f"{argv[0]} doesn't run in the built live system: {error}{hint}"
            ) from error


_CHECK: Final = """
import importlib, json, pkgutil, subprocess, sys
import protocol, receiver, receiver.cli
for package in (protocol, receiver):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
for name in receiver.cli.COMMANDS:
    subprocess.run(["/usr/bin/diskcast-agent", name, "--help"], check=True, input=b"", capture_output=True)
for program in json.loads(sys.argv[1]):
    done = subprocess.run(program, input=b"", capture_output=True)
    if done.returncode < 0 or done.returncode > 2:  # 1 and 2 are a tool's own: it needs a disk, or more arguments
        sys.exit(f"{' '.join(program)} failed with {done.returncode}: {done.stderr.decode(errors='replace')}")
print(len(sys.modules))
"""


def check_live_system(runner: InsideRunner, programs: Sequence[Sequence[str]]) -> None:
    """Import every module of the agent in the live system, and run its commands and tools.

    Args:
        runner: runs programs in it.
        programs: tools with the arguments of a harmless run.

    Raises:
        ConfigurationError: one of them doesn't run.
    """
    runner.run(["/usr/bin/python3", "-c", _CHECK, json.dumps([list(program) for program in programs])])
