"""The house rules as tests over the source: layering, purity of the protocol, sizes, fresh documents, no addresses."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "receiver", "sender")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

IMPURE = {
    "asyncio", "fcntl", "http", "io", "logging", "multiprocessing", "os", "pathlib", "prometheus_client", "select",
    "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time", "trio", "urllib",
}  # fmt: skip
"""What would let the protocol read a clock, wait, or touch a file or a socket."""

ALLOWED_IMPURE = {"protocol/fec/isal.py": {"pathlib"}}
"""Finding the FEC kernel's shared library means looking at file names."""

ROOMS = {
    "sender/imaging": set(),
    "sender/cast": {"sender/imaging", "sender/metrics"},
    "sender/console": {"sender/cast", "sender/store"},
    "sender/config": {"sender/cast"},
    "sender/store": {"sender/config"},
    "sender/library": {"sender/config", "sender/imaging", "sender/store"},
    "receiver/disk": {"receiver/target"},
    "receiver/target": {"receiver/disk"},
    "receiver/reception": {"receiver/disk", "receiver/target"},
}
"""Which other rooms of its program a room may import, where docs/explanation/code.md promises something of it."""

WEB_STACK = {
    "fastapi",
    "starlette",
    "uvicorn",
    "pydantic",
    "asyncio_dgram",
    "sqlalchemy",
    "sqlite3",
    "asyncio",
}


def _modules(path: Path) -> set[str]:
    """Every module that a module imports, be it late, by its whole name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


def _imports(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _modules(path)}


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_layers(path: Path) -> None:
    """``sender -> protocol <- receiver``, and the protocol is pure."""
    imports = _imports(path)
    package = path.relative_to(ROOT).parts[0]
    if package == "protocol":
        allowed = ALLOWED_IMPURE.get(_relative(path), set())
        assert not imports & (IMPURE - allowed), "the protocol takes time, randomness and bytes as arguments"
        assert not imports & {"sender", "receiver"}
    else:
        other = {"sender": "receiver", "receiver": "sender"}[package]
        assert other not in imports, f"{package} and {other} meet only in the protocol"
    if package == "receiver":
        assert not imports & WEB_STACK, "the agent lives in a RAM disk"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_one_way(room: str) -> None:
    """A cast runs without a daemon, a client without a server, a disk without a network."""
    program = room.partition("/")[0]
    for path in sorted((ROOT / room).rglob("*.py")):
        rooms = {"/".join(name.split(".")[:2]) for name in _modules(path) if name.startswith(f"{program}.")}
        assert {name for name in rooms if (ROOT / name).is_dir()} <= ROOMS[room] | {room}, _relative(path)


def _tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_lock_and_configuration_name_no_registry() -> None:
    for name in ("requirements.lock", "pyproject.toml", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|--(extra-)?index-url \S*\.", text), name


def test_every_locked_requirement_has_a_hash() -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text())
    assert len(blocks) > 20
    for block in blocks:
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_the_top_level_is_fixed() -> None:
    allowed = {
        "pyproject.toml", "README.md", "sender", "receiver", "protocol", "tests", "deploy", "docs", "Makefile",
        "LICENSE", "CHANGELOG.md", ".ci", ".gitignore", "requirements.lock",
    }  # fmt: skip
    assert {path.relative_to(ROOT).parts[0] for path in _tracked()} <= allowed


def test_generated_documents_are_fresh() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        capture_output=True,
        check=False,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["receiver.cli", "sender.cli"])
def test_help_is_instant(module: str) -> None:
    code = f"""
import sys
from {module} import cli
cli.main(["--help"], standalone_mode=False)
print("loaded:", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    shown, _, loaded = done.stdout.partition("loaded:")
    assert "Commands:" in shown
    assert not set(loaded.split()) & {
        "fastapi",
        "httpx",
        "numpy",
        "pydantic",
        "rich",
        "sqlalchemy",
        "trio",
        "uvicorn",
    }


@pytest.mark.parametrize("module", ["receiver.cli", "sender.cli"])
def test_every_command_is_where_the_list_says_and_its_line_fits_a_terminal(module: str) -> None:
    for name, implementation in importlib.import_module(module).COMMANDS.items():
        assert implementation.load().name == name
        assert len(implementation.summary) <= 62
