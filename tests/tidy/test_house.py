"""House rules outside of the code: lock file, top level, fresh generated documents, fast help."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


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
        "LICENSE", "SECURITY.md", "CHANGELOG.md", ".ci", ".gitignore", "requirements.lock",
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
