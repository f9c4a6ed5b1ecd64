"""Labels of states, causes and exit codes: the text that operators read for each value that the API returns.

The command line and the dashboard show these labels. Each table is keyed by the enum, or by the error class, that
defines its values; a test checks that none is missing. The order of a table is the order in which values are listed.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from protocol import errors
from protocol.errors import DiskcastError
from protocol.model.bottleneck import Cause
from protocol.model.cast_policy import SlowPolicy
from protocol.preflight.judgement import Grade
from sender.imaging.contents.generalisation import Generalisation
from sender.store.records.access import Role
from sender.store.records.boots import BootAction, UnknownMachines
from sender.store.records.captures import CaptureState
from sender.store.records.casts import CastPhase, StartMode
from sender.store.records.image_entries import ImageOrigin, OriginKind
from sender.store.records.image_exports import ExportState
from sender.store.records.image_uploads import UploadState
from sender.store.records.images import ImageState
from sender.store.records.machine_states import MachineState
from sender.store.records.machines import EnrolmentMode, EnrolmentState
from sender.store.records.problems import ProblemKind
from sender.store.records.pruning import KeepReason
from sender.store.records.wakes import WakeState


class Tone(enum.StrEnum):
    """The semantic colour of a label; the theme maps it to a concrete colour."""

    GOOD = "good"
    BUSY = "busy"
    SOFT = "soft"
    """Preparing."""
    CALM = "calm"
    """At rest."""
    WARN = "warn"
    BAD = "bad"
    OFF = "off"


@dataclasses.dataclass(frozen=True, slots=True)
class StateLabel:
    """A state as it is shown.

    Attributes:
        text: starts with a capital letter; the command line shows it in lower case.
    """

    text: str
    tone: Tone


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceLabel:
    """A choice that an operator makes, with its consequence in a sentence."""

    text: str
    hint: str


MACHINE_STATES: Final[Mapping[MachineState, StateLabel]] = MappingProxyType(
    {
        MachineState.FAILED: StateLabel("Failed", Tone.BAD),
        MachineState.LOST: StateLabel("Lost", Tone.BAD),
        MachineState.ABSENT: StateLabel("Absent", Tone.BAD),
        MachineState.DROPPED: StateLabel("Dropped", Tone.BAD),
        MachineState.SLOW: StateLabel("Slow", Tone.WARN),
        MachineState.TAIL: StateLabel("Straggler", Tone.WARN),
        MachineState.RECEIVING: StateLabel("Receiving", Tone.BUSY),
        MachineState.CAPTURING: StateLabel("Capturing", Tone.BUSY),
        MachineState.JOINED: StateLabel("Joined", Tone.SOFT),
        MachineState.ASSIGNED: StateLabel("Assigned", Tone.SOFT),
        MachineState.COMPLETE: StateLabel("Complete", Tone.GOOD),
        MachineState.WAKING: StateLabel("Waking", Tone.SOFT),
        MachineState.BOOTING: StateLabel("Booting", Tone.SOFT),
        MachineState.IDLE: StateLabel("Ready", Tone.CALM),
        MachineState.OFFLINE: StateLabel("Offline", Tone.OFF),
    }
)
"""Machines that need attention come first."""

CAST_PHASES: Final[Mapping[CastPhase, StateLabel]] = MappingProxyType(
    {
        CastPhase.PLANNED: StateLabel("Planned", Tone.CALM),
        CastPhase.GATHERING: StateLabel("Gathering", Tone.SOFT),
        CastPhase.CASTING: StateLabel("Casting", Tone.BUSY),
        CastPhase.TAIL: StateLabel("Finishing stragglers", Tone.WARN),
        CastPhase.DONE: StateLabel("Done", Tone.GOOD),
        CastPhase.FAILED: StateLabel("Failed", Tone.BAD),
        CastPhase.CANCELLED: StateLabel("Cancelled", Tone.CALM),
    }
)
PAUSED: Final = StateLabel("Paused", Tone.WARN)
"""Shown in place of the phase while a live cast is paused."""

IMAGE_STATES: Final[Mapping[ImageState, StateLabel]] = MappingProxyType(
    {
        ImageState.AVAILABLE: StateLabel("Available", Tone.GOOD),
        ImageState.REMOTE: StateLabel("Not fetched yet", Tone.CALM),
        ImageState.FETCHING: StateLabel("Fetching", Tone.BUSY),
        ImageState.DAMAGED: StateLabel("Damaged", Tone.BAD),
        ImageState.GONE: StateLabel("Gone", Tone.OFF),
    }
)

IMAGE_ORIGINS: Final[Mapping[OriginKind, str]] = MappingProxyType(
    {
        OriginKind.PACKED: "packed from a disk",
        OriginKind.IMPORTED: "conversion of",
        OriginKind.CAPTURED: "capture of",
        OriginKind.FETCHED: "copy of",
    }
)

GENERALISATIONS: Final[Mapping[Generalisation, str]] = MappingProxyType(
    {
        Generalisation.NO_SYSTEM: "no operating system was recognised",
        Generalisation.GENERALISED: "generalised: nothing of the reference machine is left",
        Generalisation.NOT_GENERALISED: (
            "not generalised: all machines get the identity of the reference machine, such as its machine id and SSH "
            "host keys; see diskcast images generalise"
        ),
    }
)
"""States of an image as the source of clones."""

KEEP_REASONS: Final[Mapping[KeepReason, str]] = MappingProxyType(
    {
        KeepReason.LAST: "one of the newest versions",
        KeepReason.YOUNG: "young",
        KeepReason.PINNED: "pinned",
        KeepReason.SCHEDULE: "a schedule casts it",
        KeepReason.ROOM: "last image of a room",
        KeepReason.CAST: "a cast uses it",
        KeepReason.FOREIGN_FOLDER: "not in the daemon's own folder",
        KeepReason.UNREADABLE: "no readable file on this machine",
    }
)

ROLES: Final[Mapping[Role, ChoiceLabel]] = MappingProxyType(
    {
        Role.VIEW: ChoiceLabel("View", "Sees everything except secrets."),
        Role.OPERATE: ChoiceLabel("Operate", "Sees and changes everything."),
        Role.ENROL: ChoiceLabel("Enrol", "For agents: enrols machines, of one room or of all, nothing else."),
        Role.BOOT: ChoiceLabel(
            "Boot", "For a boot service: asks for the systems that machines boot, nothing else."
        ),
    }
)

START_MODES: Final[Mapping[StartMode, ChoiceLabel]] = MappingProxyType(
    {
        StartMode.JOINED: ChoiceLabel("When machines have joined", "Starts automatically."),
        StartMode.MANUAL: ChoiceLabel("By hand", "Machines gather until an operator chooses “Start now”."),
    }
)

SLOW_POLICIES: Final[Mapping[SlowPolicy, ChoiceLabel]] = MappingProxyType(
    {
        SlowPolicy.DEMOTE: ChoiceLabel("Finish stragglers afterwards", "The others continue at full rate."),
        SlowPolicy.WAIT: ChoiceLabel(
            "Wait for stragglers", "The cast runs at the pace of the slowest machine."
        ),
        SlowPolicy.DROP: ChoiceLabel("Drop stragglers", "The cast continues without them, and they fail."),
    }
)

MACHINE_BOTTLENECKS: Final[Mapping[Cause, str]] = MappingProxyType(
    {
        Cause.NETWORK: "its network link",
        Cause.SOCKET: "its processor (socket queue)",
        Cause.DECODE: "its processor",
        Cause.DISK: "its disk",
        Cause.SOURCE: "the sender's disk",
        Cause.SENDER: "the sender's processor",
        Cause.CEILING: "the rate limit",
        Cause.NONE: "",
    }
)
"""Shown after "bottleneck:"; empty if nothing limits the machine."""

CAST_BOTTLENECKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "--rate": "the chosen rate",
        "--max-rate": "the chosen maximum rate",
        "this machine's processor": "the sender's processor",
        "nothing (climbing or idle)": "nothing: the rate is climbing",
    }
)
"""The dashboard's replacement for texts of sender/cast/reporting/bottleneck_view.py that need the sender's terminal."""

ENROLMENT_STATES: Final[Mapping[EnrolmentState, StateLabel]] = MappingProxyType(
    {
        EnrolmentState.NEW: StateLabel("Not enrolled", Tone.OFF),
        EnrolmentState.WAITING: StateLabel("Waiting for approval", Tone.WARN),
        EnrolmentState.APPROVED: StateLabel("Approved", Tone.BUSY),
        EnrolmentState.ENROLLED: StateLabel("Enrolled", Tone.GOOD),
        EnrolmentState.BLOCKED: StateLabel("Revoked", Tone.BAD),
    }
)

PREFLIGHT_GRADES: Final[Mapping[Grade, StateLabel]] = MappingProxyType(
    {
        Grade.OK: StateLabel("OK", Tone.GOOD),
        Grade.UNKNOWN: StateLabel("Unknown", Tone.OFF),
        Grade.WARN: StateLabel("Warn", Tone.WARN),
        Grade.REFUSE: StateLabel("Refuse", Tone.BAD),
    }
)

ENROLMENT_MODES: Final[Mapping[EnrolmentMode, ChoiceLabel]] = MappingProxyType(
    {
        EnrolmentMode.TOKEN: ChoiceLabel("Token", "A machine enrols with a valid token."),
        EnrolmentMode.APPROVE: ChoiceLabel(
            "Approval", "An operator also compares a code and approves each machine."
        ),
    }
)

UNKNOWN_MACHINES: Final[Mapping[UnknownMachines, ChoiceLabel]] = MappingProxyType(
    {
        UnknownMachines.OFF: ChoiceLabel("Off", "Unknown machines boot from their disks."),
        UnknownMachines.ASK: ChoiceLabel(
            "Ask", "They boot the live system and wait for an operator's approval."
        ),
        UnknownMachines.AUTO: ChoiceLabel(
            "Automatic", "They boot the live system and enrol by the room's rule."
        ),
    }
)

BOOT_ACTIONS: Final[Mapping[BootAction, str]] = MappingProxyType(
    {BootAction.LIVE: "live system", BootAction.DISK: "its disk"}
)

WAKE_STATES: Final[Mapping[WakeState, StateLabel]] = MappingProxyType(
    {
        WakeState.SILENT: StateLabel("Silent", Tone.BAD),
        WakeState.UNKNOWN_ADDRESS: StateLabel("No hardware address", Tone.BAD),
        WakeState.CALLED: StateLabel("Called", Tone.BUSY),
        WakeState.QUEUED: StateLabel("Queued", Tone.SOFT),
        WakeState.WOKE: StateLabel("Awake", Tone.GOOD),
        WakeState.WAS_ON: StateLabel("Was on", Tone.CALM),
    }
)

WAKE_REASONS: Final[Mapping[WakeState, str]] = MappingProxyType(
    {
        WakeState.SILENT: "no sign of life within 3 minutes of a magic packet; check its power, and Wake-on-LAN in its "
        "firmware",
        WakeState.UNKNOWN_ADDRESS: "no hardware address of it is known; add it with `diskcast machines change --mac`",
    }
)
"""Reasons why a machine wasn't woken."""

CAPTURE_STATES: Final[Mapping[CaptureState, StateLabel]] = MappingProxyType(
    {
        CaptureState.UPLOADING: StateLabel("Uploading", Tone.BUSY),
        CaptureState.PROVING: StateLabel("Proving", Tone.BUSY),
        CaptureState.PLANNED: StateLabel("Waits for the machine", Tone.SOFT),
        CaptureState.FAILED: StateLabel("Failed", Tone.BAD),
        CaptureState.CANCELLED: StateLabel("Cancelled", Tone.OFF),
        CaptureState.COMPLETE: StateLabel("Complete", Tone.GOOD),
    }
)

UPLOAD_STATES: Final[Mapping[UploadState, StateLabel]] = MappingProxyType(
    {
        UploadState.RECEIVING: StateLabel("Uploading", Tone.BUSY),
        UploadState.CHECKING: StateLabel("Checking", Tone.BUSY),
        UploadState.UNPACKING: StateLabel("Reading the disk", Tone.BUSY),
        UploadState.PACKING: StateLabel("Packing", Tone.BUSY),
        UploadState.WAITING: StateLabel("Waits for its turn", Tone.SOFT),
        UploadState.FAILED: StateLabel("Failed", Tone.BAD),
        UploadState.DONE: StateLabel("In the library", Tone.GOOD),
    }
)

EXPORT_STATES: Final[Mapping[ExportState, StateLabel]] = MappingProxyType(
    {
        ExportState.CONVERTING: StateLabel("Converting", Tone.BUSY),
        ExportState.WAITING: StateLabel("Waits for its turn", Tone.SOFT),
        ExportState.FAILED: StateLabel("Failed", Tone.BAD),
        ExportState.DONE: StateLabel("Ready", Tone.GOOD),
    }
)

PROBLEM_KINDS: Final[Mapping[ProblemKind, str]] = MappingProxyType(
    {
        ProblemKind.DATABASE: "Database",
        ProblemKind.LIBRARY: "Image library",
        ProblemKind.CAST: "Cast",
        ProblemKind.DISK: "Disk",
        ProblemKind.CLOCK: "Clock",
        ProblemKind.ENROLMENT: "Enrolment",
        ProblemKind.REQUEST: "Request",
        ProblemKind.CERTIFICATE: "Certificate",
    }
)

STATE_REASONS: Final[Mapping[MachineState, str]] = MappingProxyType(
    {
        MachineState.FAILED: "It failed without reporting a reason.",
        MachineState.LOST: "The sender no longer hears from it.",
        MachineState.ABSENT: "It never joined the cast.",
        MachineState.DROPPED: "The cast dropped it because it was too slow.",
        MachineState.SLOW: "It is falling behind the group.",
        MachineState.TAIL: "It is much slower than the group, which doesn't wait for it.",
    }
)
"""The reason to show for a machine that didn't report an error."""

STATE_ADVICE: Final[Mapping[MachineState, str]] = MappingProxyType(
    {
        MachineState.FAILED: "Fix the cause, then cast again to this machine: blocks already on its disk are kept.",
        MachineState.LOST: "Check that it is switched on and its network cable is plugged in. If it returns while the "
        "cast runs, it resumes automatically.",
        MachineState.ABSENT: "Check that it is switched on and its agent runs, then cast again to this machine.",
        MachineState.DROPPED: "Cast again to this machine alone, or choose “finish stragglers afterwards”.",
        MachineState.SLOW: "No action needed yet: if it stays slow, the cast's policy for stragglers applies.",
        MachineState.TAIL: "No action needed: the cast finishes it after the others, at its own rate.",
    }
)
"""The next step, where the exit code doesn't give a better one."""

_NOTHING_WRITTEN: Final = "Nothing was written."
_VERIFIED_KEPT: Final = "Verified blocks are kept."

ERROR_ADVICE: Final[Mapping[type[DiskcastError], str]] = MappingProxyType(
    {
        errors.ConfigurationError: f"Correct the agent's options on the machine, then cast again. {_NOTHING_WRITTEN}",
        errors.InterfaceError: "Check the machine's network interface and cable, then restart the agent.",
        errors.ImageError: "Check the image with diskcast verify, then cast it again.",
        errors.ImageDamagedError: "Pack or fetch the image again, then cast it again.",
        errors.ImageChangedError: "Don't change the image file during a cast. Cast it again.",
        errors.TargetError: f"Check the machine's disk settings. {_NOTHING_WRITTEN}",
        errors.TargetTooSmallError: f"Use a larger disk, or an image of a smaller disk. {_NOTHING_WRITTEN}",
        errors.TargetIsImageError: f"Choose another target disk for this machine. {_NOTHING_WRITTEN}",
        errors.TargetInUseError: "Unmount the disk, or boot the machine from the network, then cast again. "
        f"{_NOTHING_WRITTEN}",
        errors.TargetIsSystemDiskError: "Boot the machine from the network or a USB stick so that its disk is free. "
        f"{_NOTHING_WRITTEN}",
        errors.TargetReadOnlyError: f"Remove the disk's write protection, then cast again. {_NOTHING_WRITTEN}",
        errors.AmbiguousTargetError: f"Choose one disk with the agent's --target, then cast again. {_NOTHING_WRITTEN}",
        errors.TargetIncompatibleError: f"Use an image made for disks like this one. {_NOTHING_WRITTEN}",
        errors.FitError: "The image is on the disk and verified. Run diskcast-agent restore with the same fit options, "
        "or check the disk's size.",
        errors.SessionError: f"Check the network between sender and machine, then cast again. {_VERIFIED_KEPT}",
        errors.NoSenderError: "Check the machine's network and the switch's multicast settings, then cast again.",
        errors.CastCancelledError: f"Cast again when you are ready. {_VERIFIED_KEPT}",
        errors.CastFailedError: f"Fix the cause that the cast reports, then cast again. {_VERIFIED_KEPT}",
        errors.JoinRefusedError: "Check the cast's message about this machine; its agent may be too old.",
        errors.AmbiguousCastError: "Choose one cast with the agent's --cast, or use another multicast group.",
        errors.DroppedError: "Cast again to this machine. If it was too slow, choose “finish stragglers afterwards”.",
        errors.StorageError: "Its disk failed to read or write. Check its health (smartctl) and its cable; replace it "
        "if this happens again.",
        errors.VerificationError: "Its disk returned other bytes than were written. Don't trust it: replace the disk, "
        "then cast again.",
        errors.PreflightRefusedError: "Follow the advice of 'diskcast casts preflight', or choose another image. "
        f"{_NOTHING_WRITTEN}",
        errors.ProtocolError: "Update the agent and the sender to the same version, then cast again.",
        errors.TrustError: f"Check the keys and pins that the agent was started with. {_NOTHING_WRITTEN}",
        errors.UnsignedImageError: "Sign the image with diskcast images sign, by a key that the machine trusts, then "
        f"cast it again. {_NOTHING_WRITTEN}",
        errors.RollbackError: f"Cast a newer version of the image, or lower the floor. {_NOTHING_WRITTEN}",
        errors.CertificateError: "Give the agent the sender's current pin, and find out whose certificate it saw. "
        f"{_NOTHING_WRITTEN}",
        errors.EnrolmentRefusedError: "Check the machine's enrolment in the dashboard: token, second claim, approval.",
    }
)
"""The next step after an agent exited with this error. A subclass that isn't listed has its base class's advice."""


def origin_text(origin: ImageOrigin) -> str:
    """Return the origin of an image for people, such as "conversion of qcow2 (without checksums)"."""
    text = f"{IMAGE_ORIGINS[origin.kind]} {origin.source}".rstrip()
    return f"{text} ({origin.detail})" if origin.detail else text


def exit_code_advice() -> dict[int, str]:
    """Return the next step for each exit code of an agent, subclasses included, in the codes' order."""
    classes = {cls for root in ERROR_ADVICE for cls in (root, *_subclasses(root))}
    return {
        cls.exit_code: next(ERROR_ADVICE[base] for base in cls.__mro__ if base in ERROR_ADVICE)
        for cls in sorted(classes, key=lambda cls: cls.exit_code)
        if cls.__module__ == errors.__name__
    }


def cast_label(phase: CastPhase, *, paused: bool) -> StateLabel:
    """Return the label of a cast's phase, or that it is paused."""
    return PAUSED if paused and phase.live else CAST_PHASES[phase]


def _subclasses(cls: type[DiskcastError]) -> list[type[DiskcastError]]:
    return [deeper for child in cls.__subclasses__() for deeper in (child, *_subclasses(child))]
