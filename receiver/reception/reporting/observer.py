"""Interfaces of a reception's observers: a terminal, a log, a program that reads JSON."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from protocol.model.bottleneck import Cause
from protocol.model.session_records import CastParameters
from protocol.trust.image_policy import AcceptedImage
from receiver.reception.reporting.status import Reception, ReceptionStatus


class Observer(Protocol):
    """A subscriber to the events of one reception."""

    interval_s: float

    def accepted(self, image: AcceptedImage) -> None:
        """Note that this machine accepts the image, with a trusted signature or without."""

    def joined(self, parameters: CastParameters, *, rejoined: bool) -> None:
        """Note that the receiver has joined the cast."""

    def silent(self, silent_s: float) -> None:
        """Note that nothing was heard from the sender for ``silent_s``."""

    def demoted(self, cause: Cause) -> None:
        """Note that the sender finishes this machine after the others, because of the bottleneck ``cause``."""

    def reinstated(self) -> None:
        """Note that this machine keeps up with the others again."""

    def progress(self, status: ReceptionStatus) -> None:
        """Show the status; called every ``interval_s``."""


class ReceptionObserver(Observer, Protocol):
    """An observer that also gets the outcome; a context manager around the whole reception."""

    def __enter__(self) -> Self:
        """Start showing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop showing."""

    def finished(self, reception: Reception) -> None:
        """Show a successful outcome."""
