"""All checks of the agent's doctor: network, erasure coding, memory, target, daemon, fitting tools."""

from __future__ import annotations

import os
import shutil
from typing import Final

import psutil  # type: ignore[import-untyped]

from protocol.constants import MIB
from protocol.errors import DiskcastError
from protocol.fec.isal import best_kernel
from protocol.program.confinement import Confinement
from protocol.program.findings import Finding, fail, judge_erasure_coding, judge_memory, ok, warn
from protocol.program.peer_trust import PeerTrust
from protocol.shared.units import format_bytes
from receiver.disk.fit.fit_target import fit_tools
from receiver.disk.fit.programs import StepError, run_program
from receiver.disk.target import Target
from receiver.doctor.network_checks import check_daemon, check_network
from receiver.target.open_target import open_target
from receiver.target.selection import choose_target

MEMORY_BYTES_MAX = 300 * MIB
"""Upper bound of a receiver's memory, whatever the image."""


_PROBE_TIMEOUT_S: Final = 30.0


async def examine(
    interface_name: str,
    *,
    group: str,
    port: int,
    target: str | None,
    server: str | None = None,
    trust: PeerTrust = PeerTrust(),  # noqa: B008  it is immutable
    token: str = "",
) -> list[Finding]:
    """Run all checks; takes a few seconds and changes nothing.

    Args:
        interface_name: name as in ``ip link``.
        group: multicast address.
        port: UDP port of the data.
        target: the target as for ``receive``; None to skip it.
        server: URL of the daemon for service mode; None to skip it.
        trust: certificates that are accepted from the daemon.
        token: token for the daemon.
    """
    findings = await check_network(interface_name, group=group, port=port)
    findings.append(judge_erasure_coding(best_kernel()))
    findings.append(judge_memory(psutil.virtual_memory().available, MEMORY_BYTES_MAX))
    if target is not None:
        findings.append(_check_target(target))
    if server is not None:
        findings += await check_daemon(server, token, trust)
    findings += _check_fit_tools()
    if os.geteuid() == 0:
        findings.append(check_confinement())
    return findings


def _check_target(selector: str) -> Finding:
    """Choose and open the target as a cast would, and close it again; a new file is removed."""
    check = f"target {selector}"
    try:
        choice = choose_target(selector, partition=None, raw_bytes=0)
        with open_target(choice.path, raw_bytes=0, expected=choice.identity) as target:
            return ok(check, _describe_target(target))
    except DiskcastError as error:
        return fail(check, str(error), "choose another: diskcast-agent disks")


def _describe_target(target: Target) -> str:
    if target.is_device:
        size = format_bytes(target.size_bytes)
        return f"{target.path}, a block device of {size}, not in use, read back by {target.readback_mode}"
    free = format_bytes(shutil.disk_usage(target.path.parent).free)
    return f"a file, {free} free on its filesystem, read back by {target.readback_mode}"


def _check_fit_tools() -> list[Finding]:
    """Check the programs that ``--grow`` and ``--efi-entry`` run; other receptions don't need them."""
    missing: dict[str, list[str]] = {}
    possible: list[str] = []
    for purpose, installed, package in fit_tools():
        if installed:
            possible.append(purpose)
        else:
            missing.setdefault(package, []).append(purpose)
    detail = "; ".join(possible) if missing else "every program for --grow and --efi-entry is installed"
    findings = [ok("fitting an image to its disk", detail)] if possible else []
    for package, purposes in missing.items():
        detail = f"unavailable here: {'; '.join(purposes)}; needed only for --grow and --efi-entry"
        findings.append(warn(f"fitting: {package}", detail, f"apt install {package}"))
    return findings


def check_confinement() -> Finding:
    """Start a program as filesystem tools are started, in namespaces of its own and without privileges."""
    check = "fitting: confinement of filesystem tools"
    try:
        run_program(["true"], confinement=Confinement(), time_limit_s=_PROBE_TIMEOUT_S)
    except StepError as error:
        detail = f"{error}; --grow fails here"
        return warn(
            check,
            detail,
            "install deploy/systemd/fit.conf beside the unit, or run the agent as root outside of it",
        )
    return ok(check, "tools get one device, no capabilities and no network")
