"""Check the certificates by which agents recognise a sender or a daemon."""

from __future__ import annotations

from datetime import UTC, datetime

from protocol.errors import ConfigurationError
from protocol.program.findings import Finding, fail, ok, warn
from sender.config.daemon_certificate import daemon_certificate
from sender.config.sections import ServerSection
from sender.identity.certificate import Certificate, find_certificate, next_certificate
from sender.identity.directories import user_directory

_ROTATE = "diskcast certificate rotate{option} --prepare, give the agents both pins, then rotate"


def judge_sender_certificate() -> Finding:
    """Check the certificate of ``diskcast send`` for this user."""
    check = "certificate"
    try:
        found = find_certificate(user_directory())
        if found is None:
            return ok(check, f"made at the first cast, in {user_directory()}")
        found.server_context()
    except ConfigurationError as error:
        return fail(check, str(error), "diskcast certificate show")
    return _judge_expiry(check, found, datetime.now(UTC), option="")


def judge_daemon_certificate(server: ServerSection) -> list[Finding]:
    """Check the daemon's certificate, and the next one if it is prepared; makes none."""
    check = "certificate"
    now = datetime.now(UTC)
    try:
        if server.certificate is not None:
            found: Certificate | None = daemon_certificate(server, now)
            prepared = None
        else:
            found = find_certificate(server.state_directory)
            prepared = next_certificate(server.state_directory)
        if found is None:
            return [ok(check, f"made at the first start, in {server.state_directory}")]
        found.server_context()
    except ConfigurationError as error:
        fix = "correct server.certificate and server.certificate_key, or let the daemon's user read them"
        return [fail(check, str(error), fix)]
    findings = [_judge_expiry(check, found, now, option=" --server")]
    if prepared is not None:
        detail = f"pin {prepared.pin}, prepared; used after 'diskcast certificate rotate --server'"
        findings.append(ok("next certificate", detail))
    return findings


def _judge_expiry(check: str, found: Certificate, now: datetime, *, option: str) -> Finding:
    detail = f"pin {found.pin}, expires {found.not_after:%Y-%m-%d}"
    if found.expires_soon(now):
        state = "expired" if found.not_after <= now else "expires soon"
        return warn(
            check, f"{detail}: {state}; browsers and --ca refuse it then", _ROTATE.format(option=option)
        )
    return ok(check, detail)
