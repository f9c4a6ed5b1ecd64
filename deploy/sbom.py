"""Write the software bill of materials of an installation, as CycloneDX JSON 1.6: ``python deploy/sbom.py [FILE]``.

It lists diskcast and every package that ``diskcast[server]`` needs, as installed in this environment, with licences,
hashes of ``requirements.lock`` and dependencies. It reads only local metadata, so that a build without a network makes
it, and is the same for the same versions.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parent.parent
PROGRAM: Final = "diskcast"
EXTRA: Final = "server"
_NAMESPACE: Final = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
"""Namespace of URLs (RFC 9562, appendix A): the serial number follows from the content."""


def bill_of_materials(lock: str) -> dict[str, Any]:
    """Return the document.

    Args:
        lock: the text of ``requirements.lock``, for the hashes.
    """
    hashes = _locked_hashes(lock)
    needs: dict[str, list[str]] = {}
    waiting = [(PROGRAM, frozenset({EXTRA}))]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found = list(_requirements(name, extras))
        needs[name] = sorted({*needs.get(name, []), *(needed for needed, _ in found)} - {name})
        waiting += found
    components = [_component(name, hashes.get(name, [])) for name in sorted(needs) if name != PROGRAM]
    root = _component(PROGRAM, []) | {"type": "application"}
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": components,
        "dependencies": [
            {"ref": _purl(name), "dependsOn": [_purl(needed) for needed in needs[name]]}
            for name in sorted(needs)
        ],
    }
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, json.dumps(document))}"
    return document


def _project() -> dict[str, Any]:
    """Return diskcast's own metadata: those of an editable installation may be older than the source."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _requirements(name: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the packages that a package with ``extras`` needs on this platform."""
    if name == PROGRAM:
        optional = _project()["optional-dependencies"]
        texts = [*_project()["dependencies"], *(text for extra in extras for text in optional[extra])]
    else:
        texts = importlib.metadata.requires(name) or []
    for text in texts:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            yield str(canonicalize_name(requirement.name)), frozenset(requirement.extras)


def _component(name: str, hashes: list[str]) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": _purl(name),
        "name": name,
        "version": _version(name),
        "purl": _purl(name),
    }
    licences = (
        [{"expression": _project()["license"]}]
        if name == PROGRAM
        else _licences(importlib.metadata.metadata(name))
    )
    if licences:
        component["licenses"] = licences
    if hashes:
        # The lock has the hashes of all files of a version; which one was installed isn't recorded.
        component["externalReferences"] = [
            {
                "type": "distribution",
                "url": _purl(name),
                "hashes": [{"alg": "SHA-256", "content": value} for value in hashes],
            }
        ]
    return component


def _licences(metadata: importlib.metadata.PackageMetadata) -> list[dict[str, Any]]:
    expression = metadata.get("License-Expression")
    if expression:
        return [{"expression": expression}]
    classifiers = metadata.get_all("Classifier") or []
    names = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License :: ")]
    short = (metadata.get("License") or "").strip()
    if not names and short and "\n" not in short:
        names = [short]
    return [{"license": {"name": name}} for name in names]


def _version(name: str) -> str:
    return str(_project()["version"]) if name == PROGRAM else importlib.metadata.version(name)


def _purl(name: str) -> str:
    return f"pkg:pypi/{name}@{_version(name)}"


def _locked_hashes(lock: str) -> dict[str, list[str]]:
    """Return the hashes of each package of a lock file, sorted."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in lock.splitlines():
        start = re.match(r"([A-Za-z0-9._-]+)==", line)
        if start:
            name = str(canonicalize_name(start[1]))
        for value in re.findall(r"--hash=sha256:([0-9a-f]{64})", line):
            found.setdefault(name, []).append(value)
    return {package: sorted(values) for package, values in found.items()}


if __name__ == "__main__":
    text = json.dumps(bill_of_materials((ROOT / "requirements.lock").read_text()), indent=2) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
        Path(sys.argv[1]).write_text(text)
    else:
        sys.stdout.write(text)
