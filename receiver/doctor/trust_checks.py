"""Trust checks of the agent's doctor: keys, the kernel command line, the state directory."""

from __future__ import annotations

import datetime

from protocol.errors import ConfigurationError
from protocol.program.findings import Finding, fail, ok, warn
from protocol.program.key_findings import judge_trusted_keys, read_key_files
from protocol.trust.trusted_keys import TrustedKeys
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.kernel_command_line import KernelTrust
from receiver.trust.rollback_floors import RollbackFloors


def check_trust(trust: TrustOptions, now: datetime.datetime, *, in_service: bool) -> list[Finding]:
    """Check the images that this machine would accept.

    Args:
        trust: the options of ``receive`` or ``run``.
        now: the machine's clock.
        in_service: True for an agent of a daemon, which has no join code that could name a signer.
    """
    keys, findings = read_key_files(trust.directory)
    kernel = KernelTrust()
    try:
        kernel = trust.kernel()
    except ConfigurationError as error:
        findings.append(
            fail("kernel command line", str(error), "correct the boot server's entry for this machine")
        )
    all_keys = [*trust.keys, *keys, *kernel.keys]
    findings += judge_trusted_keys(all_keys, now)
    if not TrustedKeys(all_keys).usable(now):
        findings.append(_no_key(trust, in_service=in_service))
    findings += _check_floors(trust)
    return findings


def _no_key(trust: TrustOptions, *, in_service: bool) -> Finding:
    check, fix = "trusted keys", f"put the signer's .pub file into {trust.directory}, or give --trust-key"
    if trust.allow_unsigned:
        return warn(check, "none, and --allow-unsigned accepts every image", fix)
    if in_service:
        return fail(check, "none: this machine accepts no image", fix)
    return warn(check, "none: this machine accepts only an image whose signer its join code names", fix)


def _check_floors(trust: TrustOptions) -> list[Finding]:
    if trust.state_directory is None:
        return []
    check = "rollback floors"
    floors = RollbackFloors(trust.state_directory)
    try:
        known = floors.load()
    except ConfigurationError as error:
        return [fail(check, str(error), f"ls -l {trust.state_directory}")]
    return [ok(check, f"{len(known)} in {trust.state_directory}")]
