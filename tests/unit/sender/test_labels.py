"""Labels: each value that the API can return has its text, so that no screen shows a raw identifier."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path

import pytest

from protocol import errors
from protocol.model.bottleneck import Bottleneck, Cause
from protocol.model.cast_policy import CastPolicy, SlowPolicy
from sender import labels
from sender.cast.reporting.bottleneck_view import BottleneckView, receiver_cause_text
from sender.imaging.contents.generalisation import Generalisation
from sender.store.records.access import Role
from sender.store.records.boots import BootAction, UnknownMachines
from sender.store.records.casts import CastPhase, StartMode
from sender.store.records.image_entries import OriginKind
from sender.store.records.image_exports import ExportState
from sender.store.records.image_uploads import UploadState
from sender.store.records.images import ImageState
from sender.store.records.machine_states import UNSUCCESSFUL_STATES, MachineState
from sender.store.records.problems import ProblemKind
from sender.store.records.pruning import KeepReason
from tests.shell.sender_rig import make_rig


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (labels.MACHINE_STATES, MachineState),
        (labels.CAST_PHASES, CastPhase),
        (labels.IMAGE_STATES, ImageState),
        (labels.IMAGE_ORIGINS, OriginKind),
        (labels.UPLOAD_STATES, UploadState),
        (labels.EXPORT_STATES, ExportState),
        (labels.GENERALISATIONS, Generalisation),
        (labels.KEEP_REASONS, KeepReason),
        (labels.ROLES, Role),
        (labels.START_MODES, StartMode),
        (labels.SLOW_POLICIES, SlowPolicy),
        (labels.MACHINE_BOTTLENECKS, Cause),
        (labels.PROBLEM_KINDS, ProblemKind),
        (labels.UNKNOWN_MACHINES, UnknownMachines),
        (labels.BOOT_ACTIONS, BootAction),
    ],
)
def test_every_value_has_a_label(table: Mapping[enum.StrEnum, object], values: type[enum.StrEnum]) -> None:
    assert set(table) == set(values)


def test_a_machine_in_trouble_has_a_reason_and_a_next_step() -> None:
    assert set(labels.STATE_REASONS) == set(labels.STATE_ADVICE)
    assert set(labels.STATE_ADVICE) >= UNSUCCESSFUL_STATES


def test_a_machine_has_the_same_bottlenecks_on_the_command_line() -> None:
    for cause in (Cause.NETWORK, Cause.SOCKET, Cause.DECODE, Cause.DISK):
        assert labels.MACHINE_BOTTLENECKS[cause] == receiver_cause_text(cause)


def test_the_dashboard_replaces_only_texts_that_the_command_line_has(tmp_path: Path) -> None:
    policies = (CastPolicy(), CastPolicy(rate_bytes_per_s=1e7), CastPolicy(rate_max_bytes_per_s=1e7))
    texts = set()
    for policy in policies:
        rig = make_rig(tmp_path, policy=policy)
        with rig.image:
            texts |= {BottleneckView.of(rig.session, Bottleneck(cause)).text for cause in Cause}
    assert set(labels.CAST_BOTTLENECKS) <= texts


def test_exit_codes_of_agents_have_advice() -> None:
    advice = labels.exit_code_advice()
    assert list(advice) == sorted(advice)
    assert advice[errors.TargetTooSmallError.exit_code] == labels.ERROR_ADVICE[errors.TargetTooSmallError]
    assert advice[errors.AddressInUseError.exit_code] == labels.ERROR_ADVICE[errors.ConfigurationError]
    # Exit codes from 80 on belong to the operator's commands; 60 to 69 to the sender's.
    reported = {
        cls.exit_code
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.DiskcastError)
    }
    assert {code for code in reported if 10 <= code < 60} <= set(advice)


def test_advice_and_labels_are_sentences_and_words() -> None:
    for text in (
        *labels.ERROR_ADVICE.values(),
        *labels.STATE_ADVICE.values(),
        *labels.STATE_REASONS.values(),
    ):
        assert text[0].isupper()
        assert text.endswith(".")


def test_a_paused_cast_shows_that_it_is_paused_until_it_ends() -> None:
    assert labels.cast_label(CastPhase.CASTING, paused=True) is labels.PAUSED
    assert labels.cast_label(CastPhase.CANCELLED, paused=True) is labels.CAST_PHASES[CastPhase.CANCELLED]
