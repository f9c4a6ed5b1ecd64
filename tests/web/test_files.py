"""Tests of the dashboard's files: no build step, no external resources, no markup made from data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "sender" / "web"
OWN = sorted(
    path
    for path in WEB.rglob("*")
    if path.suffix in (".js", ".css", ".html", ".svg") and "vendor" not in path.parts
)
MODULES = [path for path in OWN if path.suffix == ".js"]


def _relative(path: Path) -> str:
    return str(path.relative_to(WEB))


@pytest.mark.parametrize("path", OWN, ids=_relative)
def test_nothing_comes_from_elsewhere(path: Path) -> None:
    text = (
        path.read_text()
        .replace("http://www.w3.org/", "")
        .replace('"http://, https:// or s3://; a .dci file."', "")
    )
    assert not re.search(r"https?://|@import|url\(", text)


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_data_never_becomes_markup(path: Path) -> None:
    text = path.read_text()
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
    )
    assert not re.search(forbidden, text)
    assert not re.search(r"""setAttribute\(\s*["']style""", text)


@pytest.mark.parametrize("path", MODULES, ids=_relative)
def test_modules_are_small_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(("/** ", "// "))
    assert text.count("\n") <= 400, "split it by responsibility"


def test_what_modules_import_is_there() -> None:
    for path in MODULES:
        for name in re.findall(r"""(?:from|import\()\s*["']([^"']+)["']""", path.read_text()):
            assert name.startswith(("./", "../")), f"{path}: {name}"
            assert (path.parent / name).resolve().is_file(), f"{path}: {name}"


def test_every_icon_is_in_the_sprite() -> None:
    sprite = set(re.findall(r'symbol id="([a-z]+)"', (WEB / "icons.svg").read_text()))
    for path in MODULES:
        text = path.read_text()
        used = set(re.findall(r"""icon\("([a-z]+)"\)|icon: "([a-z]+)\"""", text))
        assert {name for pair in used for name in pair if name} <= sprite, path


def test_the_page_has_no_inline_script_or_style() -> None:
    text = (WEB / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", text)
    for name in re.findall(r'(?:src|href)="/assets/([^"]+)"', text):
        assert (WEB / name).is_file(), name


def test_uplot_is_vendored_with_its_licence_and_version() -> None:
    folder = WEB / "vendor" / "uplot"
    assert "MIT" in (folder / "LICENSE").read_text()
    version = re.search(r"uPlot (\d+\.\d+\.\d+)", (folder / "README.md").read_text())
    assert version
    assert f"(v{version[1]})" in (folder / "uPlot.esm.js").read_text()[:300]
