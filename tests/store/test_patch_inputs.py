"""Templates and variables. Lost if these fail: secrets get into the audit, or machines lose their settings."""

from __future__ import annotations

import pytest

from sender.store.database.errors import ConflictError
from sender.store.repositories.audit import AuditNote
from sender.store.store import Store
from tests.store.samples import Clock, machine, room

NOTE = AuditNote("anna", request_id="r-1")
TEMPLATE = 'hostname = "{{ name }}"\n[[users]]\nname = "root"\npassword_hash = "$6$abc$hunter2hunter2"\n'


def test_a_room_has_one_template_which_goes_with_it(store: Store, clock: Clock) -> None:
    store.rooms.add(room())
    assert store.patch_inputs.template("lab") is None
    saved = store.patch_inputs.put_template("lab", TEMPLATE, audit=NOTE)
    assert (saved.room_id, saved.text, saved.changed_by) == ("lab", TEMPLATE, "anna")
    assert store.patch_inputs.put_template("lab", TEMPLATE, audit=AuditNote("ben")) == saved, (
        "nothing changed"
    )
    assert store.patch_inputs.put_template("lab", 'hostname = "x"', audit=NOTE).text == 'hostname = "x"'
    assert store.patch_inputs.remove_template("lab", audit=NOTE)
    assert not store.patch_inputs.remove_template("lab", audit=NOTE)
    store.patch_inputs.put_template("lab", TEMPLATE, audit=NOTE)
    store.rooms.remove("lab")
    assert store.patch_inputs.template("lab") is None
    with pytest.raises(ConflictError, match="no room 'lab'"):
        store.patch_inputs.put_template("lab", TEMPLATE, audit=NOTE)


def test_variables_are_replaced_for_all_machines_or_none(store: Store) -> None:
    one, two = (store.machines.add(machine(name)).machine_id for name in ("pc-01", "pc-02"))
    assert (
        store.patch_inputs.put_variables({one: {"ip": "10.1.2.1"}, two: {"ip": "10.1.2.2"}}, audit=NOTE) == 2
    )
    assert (
        store.patch_inputs.put_variables({one: {"ip": "10.1.2.1"}, two: {"ip": "10.1.2.9"}}, audit=NOTE) == 1
    )
    assert dict(store.patch_inputs.variables([one, two, "nobody"])[two].variables) == {"ip": "10.1.2.9"}
    with pytest.raises(ConflictError, match="no machine 'nobody'"):
        store.patch_inputs.put_variables({one: {}, "nobody": {"ip": "x"}}, audit=NOTE)
    assert store.patch_inputs.variables([one])[one].variables == {"ip": "10.1.2.1"}
    store.machines.remove(one)
    assert list(store.patch_inputs.variables([one, two])) == [two]


def test_the_audit_names_changes_and_never_has_their_contents(store: Store) -> None:
    store.rooms.add(room())
    one = store.machines.add(machine("pc-01")).machine_id
    store.patch_inputs.put_template("lab", TEMPLATE, audit=NOTE)
    store.patch_inputs.put_variables({one: {"ip": "10.1.2.1", "join_password": "swordfish"}}, audit=NOTE)
    store.patch_inputs.put_variables({one: {"ip": "10.1.2.1", "join_password": "marlin"}}, audit=NOTE)
    entries, _ = store.audit.list()
    assert [(entry.action, entry.actor) for entry in entries] == [
        ("machine.variables", "anna"), ("machine.variables", "anna"), ("room.template", "anna")
    ]  # fmt: skip
    assert entries[0].detail == {"name": "pc-01", "variables": ["join_password"]}
    assert entries[1].detail == {"name": "pc-01", "variables": ["ip", "join_password"]}
    text = (
        repr(entries) + repr(store.patch_inputs.template("lab")) + repr(store.patch_inputs.variables([one]))
    )
    assert not [secret for secret in ("hunter2", "swordfish", "marlin") if secret in text]


def test_a_restored_database_has_the_declared_settings(store: Store) -> None:
    """Otherwise the room is imaged without names after a damaged disk."""
    from sender.store.backup.journal import _TABLES

    assert {"room_templates", "machine_variables"} <= set(_TABLES), "changes must be in the journal"
