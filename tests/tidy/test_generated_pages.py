"""Generated pages: a page that nothing generates any more is found, and every command has a page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from docs import command_reference, generate


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    return generate.main()


def test_missing_stale_and_orphaned_pages_are_named_and_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    monkeypatch.setattr(generate, "PAGES", {"page.md": lambda: "# A page"})
    monkeypatch.setattr(generate, "FOLDERS", {"commands": lambda: {"a.md": "# A", "b.md": "# B"}})
    assert _run(monkeypatch, "--check") == 1
    assert "stale: page.md, commands/a.md, commands/b.md" in capsys.readouterr().err

    assert _run(monkeypatch) == 0
    assert _run(monkeypatch, "--check") == 0

    (tmp_path / "commands" / "b.md").write_text("# Old\n")
    (tmp_path / "commands" / "removed-command.md").write_text("# Removed\n")
    assert _run(monkeypatch, "--check") == 1
    shown = capsys.readouterr().err
    assert "stale: commands/b.md:" in shown
    assert "no longer generated: commands/removed-command.md:" in shown

    assert _run(monkeypatch) == 0
    assert sorted(path.name for path in (tmp_path / "commands").iterdir()) == ["a.md", "b.md"]
    assert _run(monkeypatch, "--check") == 0


def test_the_index_links_every_command() -> None:
    pages = command_reference.render_pages()
    index = pages.pop("README.md")
    assert all(f"]({name})" in index for name in pages)
    assert "## diskcast casts create\n" in pages["diskcast-casts.md"]
