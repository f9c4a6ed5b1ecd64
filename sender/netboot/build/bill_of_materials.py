"""The software bill of materials of a boot medium, as CycloneDX JSON 1.6."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any, Final

from sender.netboot.build.apt_packages import DebianPackage
from sender.netboot.build.wheels import Wheel

_NAMESPACE: Final = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
"""Namespace of URLs (RFC 9562, appendix A): the serial number follows from the content."""


def bill_of_materials(
    version: str, suite: str, packages: Iterable[DebianPackage], wheels: Iterable[Wheel]
) -> str:
    """Return the document: every Debian package and wheel that the medium has parts of.

    Args:
        version: of diskcast.
        suite: codename of the Debian release.
        packages: the packages.
        wheels: the wheels.
    """
    components = [_debian_component(package, suite) for package in packages]
    components += [_wheel_component(wheel) for wheel in wheels]
    root = {
        "type": "application",
        "bom-ref": f"pkg:pypi/diskcast@{version}",
        "name": "diskcast",
        "version": version,
        "licenses": [{"expression": "Apache-2.0"}],
        "purl": f"pkg:pypi/diskcast@{version}",
    }
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": sorted(components, key=lambda component: str(component["bom-ref"])),
    }
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, json.dumps(document))}"
    return json.dumps(document, indent=2) + "\n"


def _debian_component(package: DebianPackage, suite: str) -> dict[str, Any]:
    version = package.version.replace(":", "%3A").replace("+", "%2B").replace("~", "%7E")
    purl = f"pkg:deb/debian/{package.name}@{version}?arch={package.architecture}&distro={suite}"
    return _component(package.name, package.version, purl, package.sha256)


def _wheel_component(wheel: Wheel) -> dict[str, Any]:
    return _component(wheel.name, wheel.version, f"pkg:pypi/{wheel.name}@{wheel.version}", wheel.sha256)


def _component(name: str, version: str, purl: str, sha256: str) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "hashes": [{"alg": "SHA-256", "content": sha256}],
        "purl": purl,
    }
