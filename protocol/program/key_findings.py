"""Findings about trusted keys, which both programs' doctors share."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from protocol.program.findings import Finding, fail, ok, warn
from protocol.program.trusted_keys_directory import read_trusted_key, trusted_key_paths
from protocol.trust.statement import format_time
from protocol.trust.trusted_keys import TrustedKey, TrustedKeys

EXPIRY_WARNING: Final = datetime.timedelta(days=30)
"""Time to roll a new key out to machines that nobody visits every week."""

CLOCK_EARLIEST: Final = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
"""Before this program existed: the clock of a machine without a battery, by which no key ever expires."""


def read_key_files(directory: Path) -> tuple[list[TrustedKey], list[Finding]]:
    """Return the usable key files of a directory, and a finding for each other one."""
    keys: list[TrustedKey] = []
    findings: list[Finding] = []
    try:
        paths = trusted_key_paths(directory)
    except ConfigurationError as error:
        return [], [fail(f"trusted keys in {directory}", str(error), f"chmod go-w,a+rX {directory}")]
    for path in paths:
        try:
            keys.append(read_trusted_key(path))
        except ConfigurationError as error:
            fix = f"chmod 644 {path}; chown root {path}; or replace it by the signer's .pub file"
            findings.append(fail(f"trusted key {path.name}", str(error), fix))
    return keys, findings


def judge_trusted_keys(keys: Sequence[TrustedKey], now: datetime.datetime) -> list[Finding]:
    """Judge keys by their expiry and revocation."""
    usable = TrustedKeys(keys).usable(now)
    findings = []
    if now < CLOCK_EARLIEST and any(key.not_after is not None for key in keys):
        detail = f"it says {format_time(now)}: keys and images that have expired count as valid"
        findings.append(warn("clock", detail, "timedatectl set-ntp true, or set the clock at each boot"))
    for key in keys:
        check = f"trusted key {key.name}"
        if key.revoked:
            findings.append(ok(check, f"{key.key.id_text} is revoked: {key.revoked}"))
        elif key not in usable:
            fix = f"diskcast trust remove {key.name}; and trust the signer's new key"
            findings.append(warn(check, key.fault(now) or "it is revoked elsewhere", fix))
        elif key.not_after is not None and key.not_after - now <= EXPIRY_WARNING:
            detail = f"{key.key.id_text} expires at {format_time(key.not_after)}"
            fix = "make a new key, trust it too, and sign the images again: docs/how-to/keys.md"
            findings.append(warn(check, detail, fix))
        else:
            findings.append(ok(check, f"{key.key.id_text}, expires {format_time(key.not_after)}"))
    return findings
