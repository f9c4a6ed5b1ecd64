"""Code that runs confined: in this interpreter's place, as the launcher would start a tool."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Sequence

from protocol.program.confinement import ENVIRONMENT, Confinement

ORDINARY_USER_ID = 65534
IN_PLACE = """
import ctypes, fcntl, importlib.util, mmap, os, resource, socket, sys, threading
found = importlib.util.spec_from_file_location("launcher", sys.argv[1])
launcher = importlib.util.module_from_spec(found)
found.loader.exec_module(launcher)
code, caller = sys.argv[2], int(sys.argv[3])
split = sys.argv.index("--")
settings = launcher._Settings(sys.argv[4:split] + ["--", "/bin/true", "true"])
del sys.argv[1 : split + 1]
if os.geteuid() == 0 and caller:
    os.setgroups([])
    os.setresgid(caller, caller, caller)
    os.setresuid(caller, caller, caller)
launcher._confine(settings)
exec(code)
"""
"""Confines itself as the launcher does, then runs code: the interpreter may be where the tool's user can't start it."""


def run_confined(
    confinement: Confinement, code: str, *arguments: object, caller: int = 0, fds: Sequence[int] = ()
) -> list[str]:
    """Run Python code confined and return the lines that it prints; an uncaught error is a failure of the test."""
    _, _, _, launcher, *rest = confinement.wrap("/bin/true", ["true"], time_limit_s=60)
    settings = rest[: rest.index("--")]
    command = [
        sys.executable,
        "-I",
        "-c",
        IN_PLACE,
        launcher,
        textwrap.dedent(code),
        str(caller),
        *settings,
        "--",
    ]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=ENVIRONMENT,
        cwd="/",
        pass_fds=fds,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


ATTEMPTS = """
    import os, socket, sys
    def attempt(name, function):
        try:
            function()
        except (OSError, ImportError) as error:
            return
        print(name)
    """
"""Start of code that prints the name of each attempt that succeeds."""
