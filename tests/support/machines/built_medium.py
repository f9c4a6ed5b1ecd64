"""A boot medium for virtual machines, built once for all test processes of a run."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.network.lab import REPOSITORY, diskcast
from tests.support.signing import signing_environment

BUILD_LIMIT_S: Final = 900.0
"""Limit of a build, most of which is downloading; a quick one takes half a minute."""
QUICK: Final = ("--cloud", "--quick")


def build_medium(output: Path, *options: str, prefix: Sequence[str] = ()) -> dict[str, Any]:
    """Run ``diskcast netboot build`` and return its result; packages are cached between runs.

    It needs a network, so it doesn't run in a namespace of a test.

    Args:
        output: the medium's directory.
        options: of the command.
        prefix: a program that runs it as somebody else.
    """
    command = [*prefix, *diskcast("netboot", "build", "--output", output, "--json", *options)]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **signing_environment()},
        capture_output=True,
        text=True,
        timeout=BUILD_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def shared_medium(factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a quick medium for virtual machines, which the first caller builds.

    No pin is built in, because every room has a daemon of its own: agents take the pin from the kernel command line.
    """
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    medium = folder / "boot-medium"
    with (folder / "boot-medium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (medium / "medium.json").exists():
            build_medium(medium, *QUICK)
    return medium
