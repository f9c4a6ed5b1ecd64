"""The boot medium in the state directory: if these fail, machines boot one that refuses the daemon or its images."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from sender.netboot.build.root_filesystem import BakedIn
from sender.netboot.default_medium import outdated_because
from sender.netboot.medium import KERNEL, RECORD, MediumRecord
from sender.netboot.serve import preparation
from sender.netboot.serve.preparation import prepare_medium
from tests.support.signing import TRUSTED
from tests.unit.sender.netboot.test_medium import make_medium

PIN, OTHER_PIN = "a" * 52, "b" * 52
KEY, OTHER_KEY = TRUSTED.key.id_text, "0000000000000001"


def current(folder: Path, **changes: object) -> MediumRecord:
    """Write a medium of this version for the daemon and the key."""
    usual = {
        "diskcast_version": importlib.metadata.version("diskcast"), "pins": (PIN,), "trusted_keys": (KEY,)
    }  # fmt: skip
    record = dataclasses.replace(make_medium(folder, KERNEL), **(usual | changes))  # type: ignore[arg-type]
    (folder / RECORD).write_text(record.to_json())
    return record


def test_a_medium_of_this_version_daemon_and_key_stays(tmp_path: Path) -> None:
    assert outdated_because(current(tmp_path), (PIN,), (KEY,)) == ""
    assert outdated_because(current(tmp_path), (), ()) == "", "no daemon runs on this machine now"
    assert outdated_because(current(tmp_path, pins=()), (OTHER_PIN,), ()) == ""


@pytest.mark.parametrize(
    ("changes", "pins", "keys", "reason"),
    [
        ({"diskcast_version": "0.1"}, (PIN,), (KEY,), "it is of diskcast 0.1"),
        ({}, (OTHER_PIN,), (KEY,), "another certificate"),
        ({}, (PIN,), (KEY, OTHER_KEY), OTHER_KEY),
    ],
)
def test_a_medium_whose_machines_couldnt_be_imaged_is_outdated(
    changes: dict[str, object], pins: tuple[str, ...], keys: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    assert reason in outdated_because(current(tmp_path, **changes), pins, keys)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A service whose default medium is in a folder of the test, on a machine with a daemon and a key."""
    baked_in = BakedIn((), (PIN,), (TRUSTED,))
    monkeypatch.setattr(preparation, "default_medium_directory", lambda: tmp_path / "netboot")
    monkeypatch.setattr(preparation, "baked_in_of", lambda *_options: baked_in)
    return []


def test_a_current_default_medium_is_served_without_a_build(notes: list[str], tmp_path: Path) -> None:
    record = current(tmp_path / "netboot")
    assert prepare_medium(None, notes.append).record == record
    assert notes == []


def test_a_directory_of_the_operator_is_never_built(notes: list[str], tmp_path: Path) -> None:
    """A typo would cost minutes, and fill another folder."""
    with pytest.raises(ConfigurationError, match="isn't a boot medium"):
        prepare_medium(tmp_path / "other", notes.append)
    assert not (tmp_path / "other").exists()


def test_no_medium_is_built_whose_machines_would_accept_no_image(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "baked_in_of", lambda *_options: BakedIn((), (PIN,), ()))
    with pytest.raises(ConfigurationError, match="pack an image first"):
        prepare_medium(None, notes.append)
