"""The daemons' API as the agent calls it: checking in, at the first daemon that answers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from typing import Final, Protocol

from protocol.control.check_in import CHECK_IN, CHECK_IN_ANSWER, CHECK_IN_PATH, CheckIn, CheckInAnswer
from protocol.errors import ProtocolError, ServerRefusedError
from protocol.schema.json_fields import PrintableText
from receiver.reception.network.http_client import HttpPeer, Unreachable

CHECK_IN_TIMEOUT_S: Final = 4.0
"""Beyond the wait that was asked for: a daemon whose machine is gone must be left soon enough for the next to take the
cast over."""

BACK_OFF_FIRST_S: Final = 0.5
BACK_OFF_IDLE_MAX_S: Final = 20.0
"""A thousand machines that wait for their daemon ask it fifty times a second, and are all back 20 s after it is."""

BACK_OFF_RECEIVING_MAX_S: Final = 2.0
"""Who is in the middle of a cast is to hear of its taking over within seconds."""

EXAMPLE_URL: Final = "http://192.0.2.1:7400"


HEALTH_PATH: Final = "/healthz"
"""Beside the API: anybody may ask."""


class _Understood(Exception):  # noqa: N818 - what was to be seen
    """An empty check-in was refused for being empty: it came from somebody who may check in."""


class Daemon(Protocol):
    """What the service needs of :class:`ServerClient`."""

    url: str

    async def check_in(self, check_in: CheckIn) -> CheckInAnswer:
        """Check in once."""


class ServerClient:
    """Calls one daemon; every method is one exchange."""

    def __init__(self, url: str, token: str) -> None:
        """Take the daemon's URL as the operator says it, and a token of the role enrol; empty where none is needed.

        Raises:
            ConfigurationError: it isn't such a URL.
        """
        self._peer = HttpPeer(url, of="a diskcast daemon", example=EXAMPLE_URL)
        self.url = self._peer.url
        self._token = token

    async def check_in(self, check_in: CheckIn) -> CheckInAnswer:
        """Check in once; it is safe to repeat.

        Raises:
            Unreachable: no answer, or none of a daemon.
            ServerRefusedError: the token isn't right, which no waiting mends.
        """
        try:
            answer = await self._peer.exchange_json(
                "POST",
                CHECK_IN_PATH,
                body=CHECK_IN.encode(check_in),
                bearer=self._token,
                refusal=self._refusal,
                timeout_s=check_in.wait_s + CHECK_IN_TIMEOUT_S,
            )
            return CHECK_IN_ANSWER.decode_untrusted("answer", answer)
        except ProtocolError as error:
            raise Unreachable(
                f"{self.url} doesn't answer as this version of diskcast expects: {error}"
            ) from error

    async def health(self) -> str:
        """What the daemon says of itself: ``ok`` if all is well.

        Raises:
            Unreachable: no answer, or none of a daemon.
        """
        peer = HttpPeer(self.url, of="a diskcast daemon", example=EXAMPLE_URL, base="")
        try:
            answer = await peer.exchange_json("GET", HEALTH_PATH, refusal=self._refusal)
        except (ProtocolError, ServerRefusedError) as error:
            raise Unreachable(f"{self.url} isn't a diskcast daemon: {error}") from error
        status = answer.get("status") if isinstance(answer, dict) else None
        if not isinstance(status, str):
            raise Unreachable(f"{self.url} isn't a diskcast daemon: it has no status")
        return str(PrintableText(32).encode(status))

    async def try_token(self) -> None:
        """See whether the token may check in, without doing so: the daemon asks who it is before it asks what for.

        Raises:
            Unreachable: no answer.
            ServerRefusedError: it may not.
        """
        with contextlib.suppress(_Understood):
            await self._peer.exchange_json(
                "POST", CHECK_IN_PATH, body={}, bearer=self._token, refusal=self._trial_refusal
            )

    def _trial_refusal(self, status: int, detail: str) -> Exception:
        return _Understood() if status in (400, 422) else self._refusal(status, detail)

    def _refusal(self, status: int, detail: str) -> Exception:
        if status in (401, 403):
            return ServerRefusedError(
                f"the daemon at {self.url} refused this agent ({status}): {detail}; give it a token of the role enrol, "
                "made with diskcast tokens create, by --token-file or DISKCAST_TOKEN"
            )
        return Unreachable(f"{self.url}: {status} {detail}")


class DaemonRing:
    """Several daemons of one database, any of which will do: the one that answered last, and the next if it doesn't.

    Attributes:
        failure_count: check-ins without an answer since the last one with.
    """

    def __init__(self, daemons: Sequence[Daemon], rng: random.Random) -> None:
        """Take at least one daemon; ``rng`` spreads the tries of a room's machines."""
        assert daemons
        self._daemons = list(daemons)
        self._rng = rng
        self.failure_count = 0

    @property
    def url(self) -> str:
        """Of the daemon that is asked next."""
        return self._daemons[0].url

    async def check_in(self, check_in: CheckIn) -> CheckInAnswer:
        """Ask the present daemon once, and leave it for the next one if it doesn't answer.

        Raises:
            Unreachable: it didn't.
            ServerRefusedError: the token isn't right.
        """
        try:
            answer = await self._daemons[0].check_in(check_in)
        except ServerRefusedError:
            self.failure_count += 1
            raise
        except Unreachable:
            self.failure_count += 1
            self._daemons.append(self._daemons.pop(0))
            raise
        self.failure_count = 0
        return answer

    def pause_s(self, max_s: float) -> float:
        """How long to wait before the next try: next to nothing until all were tried, then longer and longer."""
        rounds, tried_count = divmod(self.failure_count, len(self._daemons))
        if tried_count:
            return 0.1 * self._rng.uniform(0.5, 1.0)
        # Bounded before it is raised: an agent may be without its daemon for months.
        longest_s = BACK_OFF_FIRST_S * 2.0 ** min(max(rounds - 1, 0), 16)
        return min(longest_s, max_s) * self._rng.uniform(0.5, 1.0)
