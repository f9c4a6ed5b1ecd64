"""Client of the daemons' API: check in at the first daemon that answers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from typing import Final, Protocol

from protocol.control.boot_parameters import BOOT_TOKEN_PREFIX
from protocol.control.check_in import CHECK_IN, CHECK_IN_ANSWER, CHECK_IN_PATH, CheckIn, CheckInAnswer
from protocol.errors import CertificateError, EnrolmentRefusedError, ProtocolError
from protocol.program.peer_trust import PeerTrust
from protocol.schema.json_fields import PrintableText
from receiver.reception.network.http_client import HttpPeer, Unreachable
from receiver.service.machine_credentials import MachineCredentials

CHECK_IN_TIMEOUT_S: Final = 4.0
"""Timeout beyond the requested wait: an agent must leave a dead daemon soon enough for the next one to take the cast
over."""

BACK_OFF_FIRST_S: Final = 0.5
BACK_OFF_IDLE_MAX_S: Final = 20.0
"""Longest back-off without a cast: a thousand waiting machines make fifty requests per second, and all are back 20 s
after their daemon."""

BACK_OFF_RECEIVING_MAX_S: Final = 2.0
"""Longest back-off during a cast: the agent must notice a takeover within seconds."""

EXAMPLE_URL: Final = "https://192.0.2.1:7400"

HEALTH_PATH: Final = "/healthz"
"""Path beside the API that needs no token."""


CLAIM_RETRY_S: Final = 5.0
"""Pause before a refused claim is repeated: the other agent may be this machine before a restart, and soon silent."""

CLAIM_PATIENCE_S: Final = 180.0
"""Time after which a second agent gives up: more than four times the silence that a daemon waits for."""


class ClaimRefused(Unreachable):
    """Another agent is active as this machine; a retry succeeds when that one is silent."""


class SecretRejected(Unreachable):
    """The daemon doesn't know this machine's secret any more; the machine has to enrol again."""


class _TokenAccepted(Exception):  # noqa: N818 - not an error
    """An empty check-in was refused only for being empty, after its token was accepted."""


class DaemonClient(Protocol):
    """The part of :class:`ServerClient` that the service uses."""

    url: str

    async def check_in(self, check_in: CheckIn) -> CheckInAnswer:
        """Check in once."""


class ServerClient:
    """Client of one daemon; every method is one exchange."""

    def __init__(self, url: str, credentials: MachineCredentials, trust: PeerTrust) -> None:
        """Parse the operator's URL.

        Args:
            url: URL of the daemon; plain HTTP only to this machine.
            credentials: the token for enrolment and the machine's secret, shared by the clients of all daemons.
            trust: certificates that are accepted.

        Raises:
            ConfigurationError: the URL is invalid, or ``trust`` accepts no certificate.
        """
        self._trust = trust
        self._peer = HttpPeer(
            url, trust, server_kind="a diskcast daemon", example=EXAMPLE_URL, loopback_http=True
        )
        self.url = self._peer.url
        self._credentials = credentials

    async def check_in(self, check_in: CheckIn) -> CheckInAnswer:
        """Check in once; safe to repeat.

        Raises:
            Unreachable: no answer, not one of a daemon, or another program answers, which got nothing;
                ``SecretRejected`` and ``ClaimRefused`` are kinds of it.
            EnrolmentRefusedError: the token is wrong, and retrying doesn't help.
        """
        enrolled = self._credentials.enrolled
        try:
            answer = await self._peer.exchange_json(
                "POST",
                CHECK_IN_PATH,
                body=CHECK_IN.encode(check_in),
                bearer=self._credentials.bearer,
                refusal=self._secret_refusal if enrolled else self._refusal,
                timeout_s=check_in.wait_s + CHECK_IN_TIMEOUT_S,
            )
            return CHECK_IN_ANSWER.decode_untrusted("answer", answer)
        except CertificateError as error:
            # Another program may only be answering for the moment: the agent keeps its token and tries again.
            raise Unreachable(str(error)) from error
        except ProtocolError as error:
            raise Unreachable(
                f"{self.url} gives an answer that this version of diskcast doesn't understand: {error}"
            ) from error

    async def health(self) -> str:
        """Return the daemon's health status, ``ok`` if it is healthy.

        Raises:
            Unreachable: no answer, or not one of a daemon.
        """
        peer = HttpPeer(
            self.url,
            self._trust,
            server_kind="a diskcast daemon",
            example=EXAMPLE_URL,
            base="",
            loopback_http=True,
        )
        try:
            answer = await peer.exchange_json("GET", HEALTH_PATH, refusal=self._refusal)
        except (ProtocolError, EnrolmentRefusedError) as error:
            raise Unreachable(f"{self.url} isn't a diskcast daemon: {error}") from error
        status = answer.get("status") if isinstance(answer, dict) else None
        if not isinstance(status, str):
            raise Unreachable(f"{self.url} isn't a diskcast daemon: its answer has no status")
        return str(PrintableText(32).encode(status))

    async def try_token(self) -> None:
        """Test the token without checking in: the daemon checks the token before the body, which is empty.

        Raises:
            Unreachable: no answer.
            EnrolmentRefusedError: the token is wrong.
        """
        with contextlib.suppress(_TokenAccepted):
            await self._peer.exchange_json(
                "POST", CHECK_IN_PATH, body={}, bearer=self._credentials.bearer, refusal=self._trial_refusal
            )

    def _trial_refusal(self, status: int, detail: str) -> Exception:
        return _TokenAccepted() if status in (400, 422) else self._refusal(status, detail)

    def _secret_refusal(self, status: int, detail: str) -> Exception:
        if status == 401:
            return SecretRejected(f"{self.url} doesn't accept this machine's secret: {detail}")
        return self._refusal(status, detail)

    def _refusal(self, status: int, detail: str) -> Exception:
        if status in (401, 403):
            text = f"the daemon at {self.url} refused this agent ({status}): {detail}"
            if self._credentials.bearer.startswith(BOOT_TOKEN_PREFIX):
                return EnrolmentRefusedError(text)  # the daemon's reason has the fix: boot again
            return EnrolmentRefusedError(
                f"{text}; create a token with diskcast tokens create NAME --role enrol, and pass it by --token-file or "
                "DISKCAST_TOKEN"
            )
        if status == 409:
            return ClaimRefused(f"{self.url}: {detail}")
        return Unreachable(f"{self.url}: {status} {detail}")


class DaemonRing:
    """Several daemons of one database: the one that answered last is used until it fails, then the next one.

    Attributes:
        failure_count: check-ins without an answer since the last answer.
    """

    def __init__(self, daemons: Sequence[DaemonClient], rng: random.Random) -> None:
        """Take at least one daemon; ``rng`` spreads the retries of many machines."""
        assert daemons
        self._daemons = list(daemons)
        self._rng = rng
        self.failure_count = 0

    @property
    def url(self) -> str:
        """URL of the daemon for the next check-in."""
        return self._daemons[0].url

    async def check_in(self, check_in: CheckIn) -> CheckInAnswer:
        """Check in once with the current daemon, and switch to the next one if it doesn't answer.

        Raises:
            Unreachable: the daemon didn't answer.
            EnrolmentRefusedError: the token is wrong.
        """
        try:
            answer = await self._daemons[0].check_in(check_in)
        except (EnrolmentRefusedError, ClaimRefused, SecretRejected):
            self.failure_count += 1
            raise
        except Unreachable:
            self.failure_count += 1
            self._daemons.append(self._daemons.pop(0))
            raise
        self.failure_count = 0
        return answer

    def pause_s(self, max_s: float) -> float:
        """Return the pause before the next try: short until all daemons were tried, then growing."""
        rounds, tried_count = divmod(self.failure_count, len(self._daemons))
        if tried_count:
            return 0.1 * self._rng.uniform(0.5, 1.0)
        # The exponent is bounded: an agent may be without its daemon for months.
        longest_s = BACK_OFF_FIRST_S * 2.0 ** min(max(rounds - 1, 0), 16)
        return min(longest_s, max_s) * self._rng.uniform(0.5, 1.0)
