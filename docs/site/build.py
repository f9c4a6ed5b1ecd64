"""Build the documentation site: ``python -m docs.site.build [FOLDER [DOCS]]``.

The pages are plain Markdown without a site's table of contents, which is made here from the links of docs/README.md. A
link that leads nowhere, a missing heading and a page that no table lists end the build.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DEPLOY = ROOT / "deploy"
_LINK = re.compile(r"\]\(([^)#\s]+\.md)[^)]*\)")
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)


def build(folder: Path, docs: Path) -> int:
    """Write the site into ``folder``; return Sphinx's exit code, not 0 after any warning."""
    with tempfile.TemporaryDirectory() as name:
        pages = Path(name)
        _stage(docs, pages)
        options = ["-W", "--keep-going", "-q", "-b", "html", "-c", str(Path(__file__).parent)]
        return build_main([*options, str(pages), str(folder)])


def _stage(docs: Path, pages: Path) -> None:
    """Copy docs/ and deploy/ side by side, with links between them as they are there, and add the index."""
    ignored = shutil.ignore_patterns("*.py", "__pycache__", "site")
    shutil.copytree(docs, pages, ignore=ignored, dirs_exist_ok=True)
    shutil.copytree(DEPLOY, pages / "deploy", ignore=ignored)
    for path in pages.rglob("*.md"):
        place = path.relative_to(pages)
        text = path.read_text()
        if place.parts[0] == "deploy":
            text = text.replace("](../docs/", "](../")
        else:
            up = "../" * (len(place.parts) - 1)
            text = text.replace(f"]({up}../deploy/", f"]({up}deploy/")
        path.write_text(text)
    for path in pages.glob("*/*/README.md"):  # a folder of pages within a section
        siblings = sorted(other.name for other in path.parent.glob("*.md") if other != path)
        path.write_text(path.read_text() + "\n" + _toctree("Pages", siblings))
    (pages / "index.md").write_text(_index((docs / "README.md").read_text()))
    (pages / "README.md").unlink()


def _index(contents: str) -> str:
    """Return docs/README.md with its links as the site's table of contents, a part for each section."""
    first, *parts = re.split(r"^(?=## )", contents, flags=re.MULTILINE)
    toctrees = [_toctree("Tutorials", _pages(first))]
    for part in parts:
        title = _SECTION.match(part)
        assert title is not None
        toctrees.append(_toctree(title[1], _pages(part)))
    return contents.replace("](../deploy/", "](deploy/") + "\n" + "\n".join(toctrees)


def _pages(part: str) -> Iterator[str]:
    """Yield the pages that a part of the contents links to, once each."""
    yield from dict.fromkeys(page.removeprefix("../") for page in _LINK.findall(part))


def _toctree(caption: str, pages: Iterable[str]) -> str:
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"


if __name__ == "__main__":
    target, source = (*map(Path, sys.argv[1:]), *(ROOT / "build" / "site", DOCS)[len(sys.argv) - 1 :])
    sys.exit(build(target, source))
