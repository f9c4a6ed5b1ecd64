"""The daemon's health: problems for the operator, and a stuck transmitter for systemd's watchdog."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from sender.daemon.enrolment_desk import EnrolmentDesk
from sender.daemon.image_request_desk import ImageRequestDesk
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.identity.certificate import EXPIRES_SOON, Certificate
from sender.library.library import Library
from sender.store.records.problems import Problem, ProblemKind
from sender.store.store import Store
from sender.store.write_behind import Recorder

_READ_WAITING_S: Final = 2.0
_STUCK_S: Final = 30.0
"""Time without a send after which a transmitter that should send counts as stuck."""


class HealthMonitor:
    """Problems of a running daemon. Not thread-safe: use it on the event loop."""

    def __init__(
        self,
        store: Store,
        recorder: Recorder,
        library: Library,
        registry: CastRegistry,
        desk: EnrolmentDesk,
        image_requests: ImageRequestDesk,
        certificate: Certificate,
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._library = library
        self._registry = registry
        self._desk = desk
        self._image_requests = image_requests
        self._certificate = certificate

    def problems(self) -> list[Problem]:
        """Return the problems that an operator should look at, the longest-lasting first."""
        found = [
            self._store.problem,
            self._recorder.problem,
            *self._library.problems(),
            *self._desk.problems(),
            *self._image_requests.problems(),
            *self._blocked_reads(),
            self._certificate_problem(datetime.now(UTC)),
        ]
        return sorted(
            (problem for problem in found if problem is not None), key=lambda problem: problem.since
        )

    def stuck(self) -> str | None:
        """Return a description of a transmitter that should send and doesn't; None if all is well."""
        for job in self._registry.jobs.values():
            run = job.run
            if run is None or job.cast.paused or run.read_waiting_s > 1.0:
                continue
            with run.locked_session.read() as (session, now):
                if session.sending_overdue_s(now) > _STUCK_S:
                    return f"cast {job.cast_id}: the transmitter doesn't send"
        return None

    def _certificate_problem(self, now: datetime) -> Problem | None:
        """Return the problem of a certificate that expires soon: agents with its pin continue, browsers don't."""
        certificate = self._certificate
        if not certificate.expires_soon(now):
            return None
        expires = "expired" if certificate.not_after <= now else "expires"
        text = (
            f"the certificate {certificate.certificate_file} {expires} on {certificate.not_after:%Y-%m-%d}: run "
            "'diskcast certificate rotate --server --prepare' on this machine, give the agents the next pin too, then "
            "rotate and restart the daemon"
        )
        return Problem(ProblemKind.CERTIFICATE, text, certificate.not_after - EXPIRES_SOON)

    def _blocked_reads(self) -> Iterator[Problem]:
        for job in self._registry.jobs.values():
            if job.run is not None and job.run.read_waiting_s > _READ_WAITING_S:
                text = (
                    f"cast {job.cast_id}: a read of image {job.cast.image_name!r} hasn't returned for "
                    f"{job.run.read_waiting_s:.0f} s: check its disk or file server"
                )
                yield Problem(ProblemKind.CAST, text, datetime.now(UTC))
