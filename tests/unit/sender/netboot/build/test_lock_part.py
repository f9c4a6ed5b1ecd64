"""The live system's lock file: the agent's wheels and no others, each with its hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from sender.netboot.build.lock_part import NOT_IN_LIVE_SYSTEM, agent_part, for_python, parse_lock
from sender.netboot.build.wheels import lock_text, locked_packages

ROOT = Path(__file__).resolve().parents[5]

LOCK = """\
alpha==1.0 \\
    --hash=sha256:{a} \\
    --hash=sha256:{b}
    # via diskcast (pyproject.toml)
beta-two==2.0 ; python_full_version < '3.12' \\
    --hash=sha256:{a}
    # via
    #   alpha
    #   web
beta-two==2.1 ; python_full_version >= '3.12' \\
    --hash=sha256:{b}
    # via
    #   alpha
    #   web
pygments==2.0 \\
    --hash=sha256:{a}
    # via alpha
web==3.0 \\
    --hash=sha256:{a}
    # via diskcast (pyproject.toml)
""".format(a="a" * 64, b="b" * 64)


def test_the_part_has_what_the_agent_needs_directly_and_indirectly() -> None:
    part = agent_part(list(parse_lock(LOCK)), ["Alpha"])
    assert [(package.name, package.version) for package in part] == [
        ("alpha", "1.0"),
        ("beta-two", "2.0"),
        ("beta-two", "2.1"),
    ]
    assert part[0].hashes == ("a" * 64, "b" * 64)


def test_markers_choose_by_the_python_of_the_live_system() -> None:
    part = agent_part(list(parse_lock(LOCK)), ["alpha"])
    assert for_python(part, (3, 11))["beta-two"].version == "2.0"
    assert for_python(part, (3, 13))["beta-two"].version == "2.1"


def test_a_written_part_reads_back() -> None:
    part = agent_part(list(parse_lock(LOCK)), ["alpha"])
    text = "".join(package.requirement() for package in part)
    assert [(p.name, p.version, p.hashes) for p in parse_lock(text)] == [
        (p.name, p.version, p.hashes) for p in part
    ]


def test_the_installed_part_has_every_direct_requirement_and_no_web_framework() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = {re.split(r"[^A-Za-z0-9-]", text)[0].lower() for text in project["dependencies"]}
    for python in ((3, 11), (3, 13)):
        locked = locked_packages(python)
        assert direct <= locked.keys()
        assert not locked.keys() & {"fastapi", "uvicorn", "sqlalchemy", "pytest", *NOT_IN_LIVE_SYSTEM}
        assert all(package.hashes for package in locked.values())


def test_the_installed_part_has_only_versions_of_the_lock() -> None:
    lock = {
        (package.name, package.version): set(package.hashes)
        for package in parse_lock((ROOT / "requirements.lock").read_text())
    }
    for package in parse_lock(lock_text()):
        assert set(package.hashes) == lock[package.name, package.version]
