"""What a doctor found, and the judgements that both programs' doctors share.

Pure: the shells try things and collect facts; what a fact means for a cast, and how to mend it, is said here.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Sequence

from protocol.errors import DoctorFoundProblemsError
from protocol.units import format_bytes


class Status(enum.StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    """A cast works, but slower or less comfortably than this machine could."""
    FAIL = "fail"
    """A cast would stop here."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried."""

    check: str
    status: Status
    detail: str
    mend: str = ""
    """The command or action that mends it; never empty unless the status is ok."""

    def __post_init__(self) -> None:
        """Whoever reports a problem says how to mend it."""
        assert self.mend or self.status is Status.OK, self.check

    def to_json(self) -> dict[str, object]:
        """One line of ``--json``."""
        return {
            "event": "finding",
            "check": self.check,
            "status": self.status.value,
            "detail": self.detail,
            "mend": self.mend,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class InterfaceFacts:
    """What the kernel says about one network interface."""

    name: str
    up: bool
    loopback: bool
    multicast: bool
    addresses: tuple[str, ...]
    """Of the group's address family, without prefix length or zone."""
    mtu_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class BridgeFacts:
    """What ``/sys/class/net/BRIDGE/bridge`` says about multicast."""

    name: str
    snooping: bool
    querier: bool


def ok(check: str, detail: str) -> Finding:
    """This works."""
    return Finding(check, Status.OK, detail)


def warn(check: str, detail: str, mend: str) -> Finding:
    """This works less well than it could."""
    return Finding(check, Status.WARN, detail, mend)


def fail(check: str, detail: str, mend: str) -> Finding:
    """This would stop a cast."""
    return Finding(check, Status.FAIL, detail, mend)


def plain_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """The report for pipes, logs and e-mails: one line a finding, its mend indented below."""
    for finding in findings:
        yield f"{finding.status.value:<5}{finding.check}: {finding.detail}"
        if finding.mend:
            yield f"       mend: {finding.mend}"


def summary(findings: Sequence[Finding]) -> str:
    """``12 checks: 10 ok, 2 warnings, 0 failures``."""
    counts = {status: sum(finding.status is status for finding in findings) for status in Status}
    return (
        f"{len(findings)} checks: {counts[Status.OK]} ok, {_plural(counts[Status.WARN], 'warning')}, "
        f"{_plural(counts[Status.FAIL], 'failure')}"
    )


def result_json(findings: Sequence[Finding]) -> dict[str, object]:
    """The last line of ``--json`` when nothing failed."""
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


def judge_interface(name: str, facts: InterfaceFacts | None, known_names: Iterable[str]) -> list[Finding]:
    """Whether the interface exists, is up, has an address and does multicast; stops at the first that isn't so."""
    check = f"interface {name}"
    if facts is None:
        names = ", ".join(sorted(known_names)) or "none"
        return [fail(check, f"there is no such interface; there are: {names}", "choose one with --interface")]
    if not facts.up:
        return [fail(check, "it is down", f"ip link set {name} up")]
    if not facts.addresses:
        return [
            fail(
                check, "it has no address of the group's family", f"ip address add ADDRESS/LENGTH dev {name}"
            )
        ]
    if not (facts.multicast or facts.loopback):
        return [fail(check, "it doesn't do multicast", f"ip link set {name} multicast on")]
    findings = [ok(check, f"up, {', '.join(facts.addresses)}, MTU {facts.mtu_bytes}")]
    if facts.loopback:
        detail = "only programs on this machine can hear a cast on the loopback interface"
        findings.append(warn(f"reach of {name}", detail, "for a room, name the interface of its network"))
    return findings


def judge_socket_buffer(
    check: str, *, wanted_bytes: int, limit_bytes: int, may_force: bool, sysctl_name: str
) -> Finding:
    """Whether the kernel grants the socket buffer that the fast path asks for."""
    wanted = format_bytes(wanted_bytes)
    if limit_bytes >= wanted_bytes:
        return ok(
            check, f"{sysctl_name} = {format_bytes(limit_bytes)} allows the {wanted} that are asked for"
        )
    if may_force:
        return ok(check, f"{wanted} are granted beyond {sysctl_name}: this process has CAP_NET_ADMIN")
    return warn(
        check,
        f"{sysctl_name} = {format_bytes(limit_bytes)}, asked for are {wanted}: a pause of this program costs datagrams",
        f"sysctl -w {sysctl_name}={wanted_bytes}",
    )


def judge_memory(available_bytes: int, wanted_bytes: int) -> Finding:
    """Whether the program's bounded memory fits what is available."""
    detail = f"{format_bytes(available_bytes)} available, up to {format_bytes(wanted_bytes)} are used"
    if available_bytes >= wanted_bytes:
        return ok("memory", detail)
    mend = "end other programs, or give the machine more memory (a live system in RAM counts too)"
    if available_bytes < wanted_bytes // 2:
        return fail("memory", detail, mend)
    return warn("memory", detail, mend)


def judge_bridge(facts: BridgeFacts) -> Finding:
    """Whether a bridge of this machine keeps groups alive.

    A bridge that snoops IGMP forgets a group's ports after 260 s (RFC 3376 section 8.4) unless a querier asks again,
    so that a cast stops in the middle; the classic cause of "multicast works for four minutes".
    """
    check = f"IGMP on bridge {facts.name}"
    if not facts.snooping:
        return ok(check, "no snooping: the bridge floods the group to every port")
    if facts.querier:
        return ok(check, "snooping, and the bridge asks for members itself")
    return warn(
        check,
        "snooping without a querier of its own: unless a router on that network queries, members are forgotten after "
        "about four minutes",
        f"ip link set {facts.name} type bridge mcast_querier 1",
    )


def judge_fec_kernel(name: str, *, compiled: bool) -> Finding:
    """Which erasure coding kernel was loaded."""
    if compiled:
        return ok("erasure coding", name)
    return warn(
        "erasure coding",
        f"{name}: Intel ISA-L was not found, so coding is a hundred times slower",
        "install ISA-L: apt install libisal2, or reinstall the pyeclib package, which carries a copy",
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
