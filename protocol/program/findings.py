"""Findings of a doctor, and the judgements that both programs' doctors share.

Pure: the doctors run checks and collect facts; the functions here judge the facts and name the fixes.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from protocol.errors import DoctorFoundProblemsError
from protocol.fec.gf256 import Kernel, NumpyKernel
from protocol.shared.units import format_bytes

USUAL_SPEED_MBIT_PER_S = 1000
"""Speed of a wired port of the last twenty years; less means a bad cable or a wrong setting."""


class Status(enum.StrEnum):
    """Severity of a finding."""

    OK = "ok"
    WARN = "warn"
    """A cast works, but slower or less conveniently than possible."""
    FAIL = "fail"
    """A cast would fail."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check."""

    check: str
    status: Status
    detail: str
    fix: str = ""
    """Command or action that fixes the problem; empty only if the status is ok."""

    def __post_init__(self) -> None:
        """Check that a problem comes with its fix."""
        assert self.fix or self.status is Status.OK, self.check

    def to_json(self) -> dict[str, object]:
        """Return the finding's line of ``--json``."""
        return {
            "event": "finding",
            "check": self.check,
            "status": self.status.value,
            "detail": self.detail,
            "fix": self.fix,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class MediumFacts:
    """The kernel's facts about the link below an interface."""

    interface_name: str
    wireless: bool
    speed_mbit_per_s: int
    """0 where the kernel doesn't know it, as for most virtual links."""
    half_duplex: bool


@dataclasses.dataclass(frozen=True, slots=True)
class SocketBuffer:
    """A socket buffer that a program requests larger than usual."""

    check: str
    sysctl_name: str
    """Limit for processes without CAP_NET_ADMIN."""
    consequence: str
    """Disadvantage of a smaller buffer."""


@dataclasses.dataclass(frozen=True, slots=True)
class BridgeFacts:
    """Multicast settings of a bridge, from ``/sys/class/net/BRIDGE/bridge``."""

    name: str
    snooping: bool
    querier: bool


def ok(check: str, detail: str) -> Finding:
    """Return a finding of a check that passed."""
    return Finding(check, Status.OK, detail)


def warn(check: str, detail: str, fix: str) -> Finding:
    """Return a finding of a check that passed with a disadvantage."""
    return Finding(check, Status.WARN, detail, fix)


def fail(check: str, detail: str, fix: str) -> Finding:
    """Return a finding of a check that failed."""
    return Finding(check, Status.FAIL, detail, fix)


def plain_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield the report for pipes, logs and e-mails: one line per finding, with its fix indented below."""
    for finding in findings:
        yield f"{finding.status.value:<5}{finding.check}: {finding.detail}"
        if finding.fix:
            yield f"       fix: {finding.fix}"


def summary(findings: Sequence[Finding]) -> str:
    """Return a line as ``12 checks: 10 ok, 2 warnings, 0 failures``."""
    counts = {status: sum(finding.status is status for finding in findings) for status in Status}
    return (
        f"{len(findings)} checks: {counts[Status.OK]} ok, {_plural(counts[Status.WARN], 'warning')}, "
        f"{_plural(counts[Status.FAIL], 'failure')}"
    )


def result_json(findings: Sequence[Finding]) -> dict[str, object]:
    """Return the last line of ``--json`` when nothing failed."""
    return {
        "event": "result",
        "ok": True,
        "exit_code": 0,
        "checks": len(findings),
        "warnings": [finding.check for finding in findings if finding.status is Status.WARN],
    }


def require_no_failure(findings: Sequence[Finding]) -> None:
    """Raise :class:`DoctorFoundProblemsError` naming the failed checks, if there are any."""
    failed = [finding.check for finding in findings if finding.status is Status.FAIL]
    if failed:
        raise DoctorFoundProblemsError(f"{_plural(len(failed), 'check')} failed: {', '.join(failed)}")


def judge_reach(interface_name: str, address: str) -> list[Finding]:
    """Warn if a cast on this interface doesn't leave the machine; no findings otherwise."""
    if not ipaddress.ip_address(address).is_loopback:
        return []
    detail = "only programs on this machine receive a cast on the loopback interface"
    fix = "for a room, name the interface of its network with --interface: ip -brief address"
    return [warn(f"reach of {interface_name}", detail, fix)]


def judge_medium(facts: MediumFacts) -> list[Finding]:
    """Judge whether the link suits multicast; no findings for links of unknown speed."""
    check = f"link of {facts.interface_name}"
    if facts.wireless:
        detail = "wireless: access points send multicast at their lowest rate and never resend a lost frame"
        return [warn(check, detail, "use a cable")]
    if facts.speed_mbit_per_s == 0:
        return []
    detail = f"{facts.speed_mbit_per_s} Mbit/s, {'half' if facts.half_duplex else 'full'} duplex"
    if facts.half_duplex or facts.speed_mbit_per_s < USUAL_SPEED_MBIT_PER_S:
        fix = f"try another cable or switch port; ethtool {facts.interface_name} shows what both ends offer"
        return [warn(check, detail, fix)]
    return [ok(check, detail)]


def judge_socket_buffer(buffer: SocketBuffer, *, granted_bytes: int, wanted_bytes: int) -> Finding:
    """Judge whether the kernel granted the requested socket buffer.

    Args:
        buffer: the buffer.
        granted_bytes: size that the kernel reports, twice the usable one (socket(7)).
        wanted_bytes: requested size.
    """
    granted_bytes //= 2
    if granted_bytes >= wanted_bytes:
        return ok(buffer.check, f"{format_bytes(granted_bytes)}, as requested")
    return warn(
        buffer.check,
        f"{format_bytes(granted_bytes)} of {format_bytes(wanted_bytes)}: {buffer.consequence}",
        f"sysctl -w {buffer.sysctl_name}={wanted_bytes}",
    )


def judge_memory(available_bytes: int, wanted_bytes: int) -> Finding:
    """Judge whether the program's bounded memory is available."""
    detail = f"{format_bytes(available_bytes)} available, up to {format_bytes(wanted_bytes)} used"
    if available_bytes >= wanted_bytes:
        return ok("memory", detail)
    fix = "stop other programs, or give the machine more memory (a live system in RAM counts too)"
    if available_bytes < wanted_bytes // 2:
        return fail("memory", detail, fix)
    return warn("memory", detail, fix)


def judge_bridge(facts: BridgeFacts) -> Finding:
    """Judge whether a bridge of this machine keeps groups alive.

    A bridge that snoops IGMP forgets a group's ports after 260 s (RFC 3376 section 8.4) without a querier, and the cast
    stops: the classic cause of "multicast works for four minutes".
    """
    check = f"IGMP on bridge {facts.name}"
    if not facts.snooping:
        return ok(check, "no snooping: the bridge floods the group to every port")
    if facts.querier:
        return ok(check, "snooping, and the bridge is a querier itself")
    return warn(
        check,
        "snooping without a querier of its own: unless a router on that network queries, the bridge forgets members "
        "after about four minutes",
        f"ip link set {facts.name} type bridge mcast_querier 1",
    )


def judge_erasure_coding(kernel: Kernel) -> Finding:
    """Judge whether the erasure code runs on a compiled kernel."""
    if not isinstance(kernel, NumpyKernel):
        return ok("erasure coding", kernel.name)
    return warn(
        "erasure coding",
        f"{kernel.name}: no usable Intel ISA-L was found; coding is a hundred times slower",
        "apt install libisal2, or reinstall the Python package pyeclib, which contains a copy",
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
