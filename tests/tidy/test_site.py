"""The documentation site builds without a warning, and a fault in a page ends its build."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.tidy.style import ROOT


def _build(docs: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "docs.site.build", site, docs]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_site_builds_and_a_link_that_leads_nowhere_ends_its_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    done = _build(docs, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "searchindex.js").exists()

    page = docs / "how-to" / "images.md"
    page.write_text(
        page.read_text() + "\n[a page](../tutorial/nothing.md), [a heading](firewalls.md#nothing)\n"
    )
    (docs / "how-to" / "unlisted.md").write_text("# A page that no table of contents lists\n")
    done = _build(docs, tmp_path / "broken")
    assert done.returncode == 1
    for fault in ("nothing.md", "'nothing'", "unlisted.md"):
        assert fault in done.stderr
