"""Phases of a receiver's session and their transition table: ``PHASES[phase][trigger]`` is the next phase."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


class ReceptionPhase(enum.Enum):
    """Phase of a receiver's session."""

    AWAITING_MANIFEST = enum.auto()
    """The manifest is being received or fetched; image symbols can't be placed."""
    RECEIVING = enum.auto()
    """Image symbols are collected."""
    ENDED = enum.auto()
    """The sender ended the cast. Repeated ends are ignored."""


class ReceptionTrigger(enum.Enum):
    """Event that changes the phase of a receiver's session."""

    MANIFEST_SET = enum.auto()
    CAST_ENDED = enum.auto()


PHASES: Final[Mapping[ReceptionPhase, Mapping[ReceptionTrigger, ReceptionPhase]]] = MappingProxyType(
    {
        ReceptionPhase.AWAITING_MANIFEST: {
            ReceptionTrigger.MANIFEST_SET: ReceptionPhase.RECEIVING,
            ReceptionTrigger.CAST_ENDED: ReceptionPhase.ENDED,
        },
        ReceptionPhase.RECEIVING: {ReceptionTrigger.CAST_ENDED: ReceptionPhase.ENDED},
        # The end may overtake a manifest that is fetched over the control API.
        ReceptionPhase.ENDED: {ReceptionTrigger.MANIFEST_SET: ReceptionPhase.ENDED},
    }
)
