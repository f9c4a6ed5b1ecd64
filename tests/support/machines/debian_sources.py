"""apt's sources of a Debian release with the component of firmware, from this machine's own sources.

Many machines don't use that component, and have the sources of their own release only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from sender.netboot.build.apt_packages import this_suite

_SOURCES: Final = Path("/etc/apt/sources.list.d")
_FIRMWARE: Final = "non-free-firmware"


def write_debian_sources(path: Path, suite: str | None = None) -> Path:
    """Write sources to ``path``, whose suffix is ``.sources``, and return it.

    Args:
        path: file of paragraphs as in deb822(5), as Debian's own images have them.
        suite: codename of the release; None for this machine's.
    """
    assert path.suffix == ".sources"
    own_suite = this_suite()
    paragraphs = []
    for file in sorted(_SOURCES.glob("*.sources")):
        text = "\n".join(line for line in file.read_text().splitlines() if not line.startswith("#"))
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            suites = re.search(r"^Suites: *(.*)$", paragraph, re.MULTILINE)
            if suites is not None and any(name.split("-")[0] == own_suite for name in suites[1].split()):
                paragraphs.append(_changed(paragraph, own_suite, suite or own_suite))
    assert paragraphs, f"{_SOURCES} has no source of {own_suite} in a file that ends with .sources"
    path.write_text("\n\n".join(paragraphs) + "\n")
    return path


def _changed(paragraph: str, own_suite: str, suite: str) -> str:
    """Return a paragraph for another release, with the component of firmware."""
    lines = []
    for line in paragraph.splitlines():
        field, _, value = line.partition(":")
        words = value.split()
        if field == "Suites":
            words = [re.sub(rf"^{own_suite}(?=-|$)", suite, word) for word in words]
        if field == "Components":
            words = list(dict.fromkeys((*words, _FIRMWARE)))
        lines.append(f"{field}: {' '.join(words)}" if words else line)
    return "\n".join(lines)
