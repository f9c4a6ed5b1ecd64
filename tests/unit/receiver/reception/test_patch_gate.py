"""The patch of this machine in a daemon's cast: the assignment, the join's answer and the patch must agree."""

from __future__ import annotations

import functools

import pytest

from protocol.errors import PatchRefusedError
from protocol.model.session_records import MachineIdentity
from protocol.patch.patch_set import SignedPatchSet
from protocol.trust.statement import PatchPolicy
from receiver.reception.options import CastReceiverOptions
from receiver.reception.patch_gate import PatchGate
from receiver.reception.receive import own_machine_ids
from tests.support.disks.disk_images import make_image
from tests.support.patches import MACHINE, accepted, make_patch, signed_set
from tests.support.signing import KEYS, NOW

MADE = make_image("drzd")
PATCH = make_patch(MADE.manifest, {1: "d"})
OTHER = make_patch(MADE.manifest, {1: "d"}, seed=9)


def _gate(policy: PatchPolicy, assigned_id: bytes | None = None) -> PatchGate:
    verify = functools.partial(SignedPatchSet.verify, keys=KEYS, now=NOW)
    return PatchGate(accepted(MADE, policy), frozenset([MACHINE]), verify, assigned_id)


@pytest.mark.parametrize("granted", [None, OTHER.patch_id], ids=["none", "another"])
def test_a_sender_cannot_exchange_or_withhold_the_assigned_patch(granted: bytes | None) -> None:
    """A machine whose patch is withheld would be a clone that reports success."""
    gate = _gate(PatchPolicy.DAEMON, PATCH.patch_id)
    with pytest.raises(PatchRefusedError, match="the daemon assigned"):
        gate.check_granted(granted)
    gate.check_granted(PATCH.patch_id)


def test_the_served_patch_must_be_the_granted_one() -> None:
    with pytest.raises(PatchRefusedError, match="altered"):
        _gate(PatchPolicy.DAEMON).permit(PATCH.patch_id, OTHER.data, None)(MADE.manifest)
    assert _gate(PatchPolicy.DAEMON).permit(PATCH.patch_id, PATCH.data, None)(MADE.manifest) is not None


def test_a_set_is_fetched_where_the_statement_needs_one() -> None:
    assert not _gate(PatchPolicy.DAEMON).needs_set
    gate, signed = _gate(PatchPolicy.SIGNED), signed_set([PATCH]).to_bytes()
    assert gate.needs_set
    assert gate.permit(PATCH.patch_id, PATCH.data, signed)(MADE.manifest) is not None
    with pytest.raises(PatchRefusedError, match="another patch, or none"):
        gate.permit(OTHER.patch_id, OTHER.data, signed)(MADE.manifest)


def test_a_machine_knows_its_ids() -> None:
    options = CastReceiverOptions("pc-07", {}, 1, 1.0, 1.0, identity=MachineIdentity((), "stated", ""))
    read = MachineIdentity(("52:54:00:12:34:56",), "0123", "")
    assert own_machine_ids(options, read) == {"pc-07", "stated", "0123", "52:54:00:12:34:56"}
