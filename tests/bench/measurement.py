"""Measurements of casts, and their medians over rounds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.support.network.lab import Usage

_COMPARE_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    """A network, with the properties that are the same for all compared programs."""

    receiver_count: int
    loss_permille: int
    offload: bool

    @property
    def title(self) -> str:
        receivers = f"{self.receiver_count} receiver{'s' if self.receiver_count > 1 else ''}"
        return f"{receivers}, {self.loss_permille / 10:g} % loss, offload {'on' if self.offload else 'off'}"


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """One cast by one program. ``failure`` is the reason for missing figures, otherwise empty."""

    program: str
    wall_s: float
    """Seconds from the start of the sending process to the exit of the last process; receivers start before."""
    cast_s: float
    """Seconds from the first data to the last receiver's last verified block, if the program reports it; else nan."""
    sender_cpu_s: float
    receiver_cpu_s: float
    """Mean CPU seconds of the receivers."""
    sender_peak_bytes: int
    receiver_peak_bytes: int
    """Largest peak memory of the receivers."""
    failure: str = ""


FIGURES = (
    "wall_s",
    "cast_s",
    "sender_cpu_s",
    "receiver_cpu_s",
    "sender_peak_bytes",
    "receiver_peak_bytes",
)


def measured(
    program: str,
    wall_s: float,
    sender: Usage | None,
    receivers: Sequence[Usage | None],
    *,
    cast_s: float = np.nan,
) -> Measurement:
    """Return the measurement of programs that exited."""
    assert sender is not None
    ended = [usage for usage in receivers if usage is not None]
    assert len(ended) == len(receivers)
    return Measurement(
        program,
        wall_s,
        cast_s,
        sender.cpu_s,
        statistics.fmean(usage.cpu_s for usage in ended),
        sender.peak_bytes,
        max(usage.peak_bytes for usage in ended),
    )


def failed(program: str, reason: str) -> Measurement:
    """Return a measurement without figures."""
    return Measurement(program, np.nan, np.nan, np.nan, np.nan, 0, 0, reason)


def median(rounds: Sequence[Measurement]) -> Measurement:
    """Return the medians of the rounds, figure by figure; a failure if any round failed."""
    failures = [one for one in rounds if one.failure]
    if failures:
        return failures[0]
    figures = {name: statistics.median(getattr(one, name) for one in rounds) for name in FIGURES}
    return dataclasses.replace(rounds[0], **figures)


def write_random_image(path: Path, size_bytes: int, seed: int) -> None:
    """Write incompressible bytes, the same for the same seed."""
    generator = np.random.default_rng(seed)
    with path.open("wb") as file:
        for start in range(0, size_bytes, _COMPARE_BYTES):
            file.write(generator.bytes(min(_COMPARE_BYTES, size_bytes - start)))


def first_difference(one: Path, other: Path) -> int | None:
    """Return the offset of the first different byte of two files; None if they are equal."""
    offset_bytes = 0
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(_COMPARE_BYTES), right.read(_COMPARE_BYTES)
            if a != b:
                common = min(len(a), len(b))
                unequal = np.flatnonzero(
                    np.frombuffer(a, np.uint8, common) != np.frombuffer(b, np.uint8, common)
                )
                return offset_bytes + (int(unequal[0]) if unequal.size else common)
            if not a:
                return None
            offset_bytes += len(a)
