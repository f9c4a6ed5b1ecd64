"""The software bill of materials: an auditor must find every package that the program installs."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_bill_of_materials_is_complete_and_reproducible(tmp_path: Path) -> None:
    texts = []
    for name in ("one.json", "two.json"):
        subprocess.run([sys.executable, ROOT / "deploy" / "sbom.py", tmp_path / name], check=True)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    document = json.loads(texts[0])
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["name"] == "diskcast"
    components = {component["name"]: component for component in document["components"]}
    assert {"cryptography", "fastapi", "h11", "numpy", "sqlalchemy", "cffi"} <= components.keys()
    assert not {"pytest", "mypy", "playwright"} & components.keys(), "not part of the program"
    for component in components.values():
        assert component["version"] == importlib.metadata.version(component["name"])
        assert component["licenses"], component["name"]
        [distribution] = component["externalReferences"]
        assert distribution["hashes"], component["name"]
    references = {component["bom-ref"] for component in components.values()}
    for entry in document["dependencies"]:
        assert set(entry["dependsOn"]) <= references
