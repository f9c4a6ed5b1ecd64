"""Tests of the kernel's lockdown mode, which the live system names on the console."""

from __future__ import annotations

from pathlib import Path

import pytest

from receiver.live.boot import read_lockdown


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("none [integrity] confidentiality\n", "integrity"),
        ("none integrity [confidentiality]\n", "confidentiality"),
        ("[none] integrity confidentiality\n", ""),
        ("", ""),
    ],
)
def test_the_mode_is_the_word_in_brackets(text: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "lockdown"
    path.write_text(text)
    assert read_lockdown(path) == mode


def test_a_kernel_without_lockdown_has_none(tmp_path: Path) -> None:
    assert read_lockdown(tmp_path / "missing") == ""
