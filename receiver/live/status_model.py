"""The state that the live system's screen shows, from the events of the agent. Pure: time is an argument."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections import deque
from typing import Final

from protocol.control.boot_parameters import AfterCast
from protocol.control.check_in import Assignment
from protocol.shared.units import format_bytes, format_duration, format_rate
from protocol.trust.image_policy import AcceptedImage
from receiver.live.messages import AGENT_FAILED, INVALID_SETTING, MESSAGES
from receiver.live.status_page import StatusPage, TextTone
from receiver.reception.reporting.progress import verified_share
from receiver.reception.reporting.status import Reception, ReceptionState, ReceptionStatus

_NOTES_MAX: Final = 8
_ETA_WINDOW_S: Final = 30.0
"""Time over which the rate of verified bytes is averaged: repair and the disk's cache make it uneven."""
_ETA_FIRST_S: Final = 5.0
"""No estimate before this time."""


class ScreenStage(enum.Enum):
    """The state of the live system, as the screen names it."""

    STARTING = "Starting"
    STOPPED = "This machine can't be imaged"
    UNANSWERED = "No daemon answers"
    APPROVAL = "Waiting for approval. The code of this machine:"
    WAITING = "Ready: waiting for a cast"
    RECEIVING = "Receiving the image"
    COMPLETE = "The image is on the disk, every byte read back and verified"
    FAILED = "The cast failed on this machine"


_TONES: Final = {
    ScreenStage.STOPPED: TextTone.BAD,
    ScreenStage.UNANSWERED: TextTone.WARNING,
    ScreenStage.APPROVAL: TextTone.WARNING,
    ScreenStage.COMPLETE: TextTone.GOOD,
    ScreenStage.FAILED: TextTone.BAD,
}

_AFTER_SUCCESS: Final = {
    AfterCast.WAIT: "Next: this machine waits for another cast. You can switch it off.",
    AfterCast.EXIT: "Next: the agent exits. You can switch this machine off.",
    AfterCast.REBOOT: "Next: this machine restarts from its disk.",
    AfterCast.POWEROFF: "Next: this machine switches itself off.",
}
_AFTER_RECEIVING: Final = {
    AfterCast.WAIT: "Next: when every byte is verified, this machine waits for another cast.",
    AfterCast.EXIT: "Next: when every byte is verified, the agent exits.",
    AfterCast.REBOOT: "Next: when every byte is verified, this machine restarts from its disk.",
    AfterCast.POWEROFF: "Next: when every byte is verified, this machine switches itself off.",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """An error message in its parts; parts that it doesn't have are empty."""

    error: str
    cause: str = ""
    fix: str = ""

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return the parts with their labels, for a page."""
        return _given(("Error", self.error), ("Cause", self.cause), ("Fix", self.fix))


_FIX_VERBS: Final = re.compile(
    r"(add|boot|check|choose|connect|correct|enable|give|install|name|replace|set|start|stop|unmount|use|wait)\b"
)
"""Verbs that open the fix in messages without a separate cause."""


def explain(message: str) -> Explanation:
    """Split a message of the form ``thing: cause; fix``, as the program's errors have it."""
    head, separator, tail = message.rpartition("; ")
    fix = tail if separator else ""
    error, _, cause = (head if separator else message).partition(": ")
    if not fix and _FIX_VERBS.match(cause):
        cause, fix = "", cause
    return Explanation(error, cause, fix)


_LINK: Final = re.compile(r"\[([^\]]+)\]\([^)]+\)|`")
"""Marks of a documentation page."""


def explain_boot(message: str) -> Explanation:
    """Return the message of a start with cause and fix from the table of messages."""
    for kind in MESSAGES:
        if kind not in (INVALID_SETTING, AGENT_FAILED) and kind.matches(message):
            return Explanation(message, _LINK.sub(r"\1", kind.cause), _LINK.sub(r"\1", kind.fix))
    return explain(message)


class RemainingTime:
    """An estimate of the time until all bytes are verified."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, verified_bytes: int, now: float) -> None:
        """Note the bytes that are verified ``now``."""
        self._samples.append((now, verified_bytes))
        while self._samples[0][0] < now - _ETA_WINDOW_S:
            self._samples.popleft()

    def seconds(self, remaining_bytes: int) -> float | None:
        """Return the estimate; None if it is too early, or nothing moves."""
        if not self._samples:
            return None
        first, last = self._samples[0], self._samples[-1]
        elapsed_s, advanced = last[0] - first[0], last[1] - first[1]
        if elapsed_s < _ETA_FIRST_S or advanced <= 0:
            return None
        return remaining_bytes * elapsed_s / advanced


def rough_duration(seconds: float) -> str:
    """Return a time as people say it: ``40 s``, ``12 min``, ``2 h 10 min``."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class StatusModel:
    """The state of the screen; every method notes one event."""

    def __init__(self, *, version: str) -> None:
        """Start with a machine that has just booted; ``version`` is the program's, for the footer."""
        self.name = ""
        self.address = ""
        self.target = ""
        self.after = AfterCast.WAIT
        self._version = version
        self._stage = ScreenStage.STARTING
        self._step = ""
        self._server = ""
        self._code = ""
        self._explanation = Explanation("")
        self._following = ""
        self._assignment: Assignment | None = None
        self._signer = ""
        self._status: ReceptionStatus | None = None
        self._silent_s = 0.0
        self._rate_bytes_per_s = 0.0
        self._remaining = RemainingTime()
        self._result = ""
        self._notes: deque[str] = deque(maxlen=_NOTES_MAX)

    def note(self, text: str) -> None:
        """Show a line among the last messages."""
        self._notes.extend(line.strip() for line in text.splitlines() if line.strip())

    def step(self, text: str) -> None:
        """Show a step of the start, such as ``waiting for an address on eth0``."""
        self._stage, self._step = ScreenStage.STARTING, text

    def stopped(self, message: str, following: str) -> None:
        """Show an error after which this machine can't be imaged, and the next step."""
        self._stage, self._following = ScreenStage.STOPPED, following
        self._explanation = explain_boot(message)

    def unanswered(self, reason: str) -> None:
        """Show that no daemon answers; a running reception isn't concerned, and a result stays on the screen."""
        if self._stage in (ScreenStage.STARTING, ScreenStage.WAITING, ScreenStage.APPROVAL):
            self._stage, self._explanation = ScreenStage.UNANSWERED, explain(reason)

    def awaiting_approval(self, name: str, code: str) -> None:
        """Show the code."""
        self._stage, self.name, self._code = ScreenStage.APPROVAL, name, code

    def waiting(self, server: str, name: str) -> None:
        """Show that this machine is ready, unless the result of its cast is on the screen."""
        self._server, self.name = server, name or self.name
        if self._stage not in (ScreenStage.COMPLETE, ScreenStage.FAILED, ScreenStage.RECEIVING):
            self._stage = ScreenStage.WAITING

    def assigned(self, assignment: Assignment) -> None:
        """Show a cast."""
        self._stage, self._assignment = ScreenStage.RECEIVING, assignment
        self._signer, self._status, self._silent_s = "", None, 0.0
        self._remaining = RemainingTime()

    def accepted(self, image: AcceptedImage) -> None:
        """Show the signer of the image."""
        if image.verified is None:
            self._signer = "no trusted signature; allowed by this machine's options"
        else:
            statement, key = image.verified.statement, image.verified.key
            self._signer = f"version {statement.version}, signed by {key.name} ({key.key.id_text})"

    def silent(self, silent_s: float) -> None:
        """Show that the sender is silent."""
        self._silent_s = silent_s

    def progress(self, status: ReceptionStatus, rate_bytes_per_s: float, now: float) -> None:
        """Show the progress."""
        self._status, self._rate_bytes_per_s = status, rate_bytes_per_s
        self.target = status.target
        if status.scanned_share >= 1:  # what a scan finds says nothing about the rate of what is missing
            self._remaining.note(status.raw_bytes_verified, now)
        if status.state is not ReceptionState.SILENT:
            self._silent_s = 0.0

    def succeeded(self, reception: Reception) -> None:
        """Show a success."""
        self._stage, self._status = ScreenStage.COMPLETE, reception.status
        self.target = reception.status.target
        kept = reception.status.raw_bytes_kept
        self._result = (
            f"{format_bytes(reception.status.raw_bytes)} after {format_duration(reception.status.seconds)}"
            + (f"; {format_bytes(kept)} were already there" if kept else "")
        )

    def failed(self, message: str) -> None:
        """Show a failure."""
        self._stage, self._explanation = ScreenStage.FAILED, explain(message)

    # -- the page ---------------------------------------------------------------------------------------------

    def page(self) -> StatusPage:
        """Return the screen's content."""
        return StatusPage(
            name=self.name,
            address=self.address,
            heading=self._stage.value,
            tone=_TONES.get(self._stage, TextTone.STRONG),
            large=self._large(),
            facts=self._facts(),
            share=self._share(),
            figures=self._figures(),
            following=self._sentences(),
            notes=tuple(self._notes),
            footer="   ".join(filter(None, (f"diskcast {self._version}", self._server))),
        )

    def _large(self) -> str:
        match self._stage:
            case ScreenStage.APPROVAL:
                return self._code
            case ScreenStage.COMPLETE:
                return "DONE"
            case ScreenStage.FAILED | ScreenStage.STOPPED:
                return "FAILED"
            case _:
                return ""

    def _facts(self) -> tuple[tuple[str, str], ...]:
        match self._stage:
            case ScreenStage.STARTING:
                return (("Step", self._step),) if self._step else ()
            case ScreenStage.STOPPED | ScreenStage.UNANSWERED | ScreenStage.FAILED:
                return self._explanation.facts
            case ScreenStage.WAITING:
                return _given(("Machine", self.name), ("Daemon", self._server), ("Disk", self.target))
            case ScreenStage.RECEIVING | ScreenStage.COMPLETE if self._assignment is not None:
                cast = self._assignment
                return _given(
                    ("Image", f"{cast.image_name}, {format_bytes(cast.raw_bytes)}"),
                    ("Signature", self._signer),
                    ("Disk", self.target),
                    ("Cast", f"{cast.cast_id:08x} from {cast.control_url}"),
                    ("Result", self._result if self._stage is ScreenStage.COMPLETE else ""),
                )
            case _:
                return ()

    def _share(self) -> float | None:
        if self._stage is not ScreenStage.RECEIVING:
            return None
        status = self._status
        return 0.0 if status is None else verified_share(status)

    def _figures(self) -> str:
        status = self._status
        if self._stage is not ScreenStage.RECEIVING:
            return ""
        if status is None or status.state is ReceptionState.JOINING:
            return "joining the cast"
        if status.state is ReceptionState.REPORTING:
            return "every byte is verified; reporting the result"
        if self._silent_s:
            return f"nothing heard from the sender for {rough_duration(self._silent_s)}; waiting for it"
        verified = f"{format_bytes(status.raw_bytes_verified)} of {format_bytes(status.raw_bytes_used)}"
        if status.scanned_share < 1:
            return f"{verified}   comparing the disk with the image: {status.scanned_share:.0%}"
        remaining_s = self._remaining.seconds(status.raw_bytes_used - status.raw_bytes_verified)
        eta = "" if remaining_s is None else f"about {rough_duration(remaining_s)} left"
        return "   ".join(filter(None, (verified, format_rate(self._rate_bytes_per_s), eta)))

    def _sentences(self) -> tuple[str, ...]:
        match self._stage:
            case ScreenStage.APPROVAL:
                return (
                    "Next: approve it in the dashboard if the same code is shown there, or run",
                    f"diskcast machines approve {self.name} --code {self._code}",
                )
            case ScreenStage.WAITING:
                return (
                    "Next: start a cast for this machine in the dashboard, or run",
                    f"diskcast casts create IMAGE --machine {self.name}",
                )
            case ScreenStage.UNANSWERED:
                return ("Next: this machine tries again until a daemon answers.",)
            case ScreenStage.RECEIVING:
                return (_AFTER_RECEIVING[self.after], "Please leave it switched on.")
            case ScreenStage.COMPLETE:
                return (_AFTER_SUCCESS[self.after],)
            case ScreenStage.FAILED:
                return ("Next: this machine waits, and receives the cast again if it is still assigned.",)
            case ScreenStage.STOPPED:
                return (self._following[:1].upper() + self._following[1:],)
            case _:
                return ()


def _given(*facts: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the facts that have a text."""
    return tuple((label, text) for label, text in facts if text)
