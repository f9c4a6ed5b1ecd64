"""The preflight of a cast: the matrix machine by check."""

from __future__ import annotations

import dataclasses

from protocol.preflight.judgement import Check, Grade


@dataclasses.dataclass(frozen=True, slots=True)
class PreflightMachine:
    """A machine's row of the matrix.

    Attributes:
        grade: the worst of its checks.
    """

    machine_id: str
    name: str
    grade: Grade
    checks: tuple[Check, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Preflight:
    """The matrix machine by check.

    Attributes:
        image_known: the image's contents were read; otherwise only its size counts.
        problem: reason why they weren't; empty if they were, or are being read.
        refused_count: machines that a cast excludes.
        warned_count: machines with a warning that aren't refused.
    """

    image_id: str
    image_name: str
    image_known: bool
    problem: str
    refused_count: int
    warned_count: int
    machines: tuple[PreflightMachine, ...]
