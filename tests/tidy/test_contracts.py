"""The import contracts of pyproject.toml hold, and each is broken by a seeded violation."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.style import PACKAGES, ROOT

LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"

_HIDDEN = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from protocol.fec import isal\n"
_LATE = "def late() -> None:\n    from protocol.fec import isal\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "web"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def _lint(checkout: Path) -> tuple[int, set[str]]:
    """Run import-linter; return its exit code and the contracts that it reports as broken."""
    done = subprocess.run(
        [LINT_IMPORTS, "--no-cache"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, set(re.findall(r"^(.+) BROKEN\b", done.stdout, re.MULTILINE))


def test_the_contracts_hold(checkout: Path) -> None:
    assert _lint(checkout) == (0, set())


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("sender/cli.py", "import receiver.cli", "The programs meet only in the protocol"),
        ("protocol/wire/codec.py", "import socket", "The protocol is sans-IO"),
        ("protocol/image/manifest.py", "import click", "The protocol is sans-IO"),
        ("protocol/shared/units.py", "import protocol.wire.codec", "Sessions stand on"),
        ("protocol/sending/transmission/pacing.py", "import protocol.receiving.arrival", "Sessions stand on"),
        ("sender/cast/runner_probe.py", "import sender.store", "The sender"),
        ("receiver/disk/probe.py", "import receiver.target", "The receiver"),
        ("receiver/cli.py", "import fastapi", "The agent lives in a RAM disk"),
        ("protocol/fec/gf256.py", _HIDDEN, "No module or package imports itself"),
        ("protocol/fec/gf256.py", _LATE, "No module or package imports itself"),
    ],
)
def test_a_violation_breaks_its_contract(checkout: Path, module: str, line: str, contract: str) -> None:
    path = checkout / module
    text = path.read_text() if path.exists() else ""
    path.write_text(f"{text}\n{line}\n")
    try:
        code, broken = _lint(checkout)
    finally:
        path.write_text(text)
    assert code == 1
    assert any(name.startswith(contract) for name in broken), broken
