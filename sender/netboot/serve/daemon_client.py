"""The boot service's client of the daemon: one question per boot, with a short deadline."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Final, Self

import httpx
import pydantic

from protocol.errors import ServerRefusedError, ServerUnreachableError
from protocol.program.peer_trust import PeerTrust
from sender.console.client import API_PREFIX, checked_url, client_tls
from sender.store.records.boots import BOOT_PATH, BootAnswer, BootReport

ANSWER_S: Final = 2.0
"""Time for an answer, connecting included: firmware waits, and a room must not hang when the daemon does."""
_QUESTIONS_MAX: Final = 16
"""Questions at a time: a daemon writes each one to its database, and more would only wait there."""
TURN_S: Final = 20.0
"""Time for which a question waits for its turn, apart from its answer: 500 machines that are switched on together ask
within a second, and none of them may boot from its disk for that reason."""
_ANSWER_BYTES_MAX: Final = 64 << 10
_REPORT: Final = pydantic.TypeAdapter(BootReport)
_ANSWER: Final = pydantic.TypeAdapter(BootAnswer)


class BootApiClient:
    """A client of the daemon's decisions about boots."""

    def __init__(self, server: str, token: str | None, trust: PeerTrust | None = None) -> None:
        """Ask the daemon at ``server``.

        Args:
            server: URL of the daemon, without a path; plain HTTP only for a daemon on this machine.
            token: secret of a token of role boot or operate.
            trust: certificates that are accepted; by default those of the system's authorities.

        Raises:
            ConfigurationError: the URL can't be used.
        """
        self.server = checked_url(server)
        self._http = httpx.AsyncClient(
            verify=client_tls(self.server, trust),
            base_url=self.server + API_PREFIX,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=ANSWER_S,
            limits=httpx.Limits(max_connections=_QUESTIONS_MAX),
            # Ignore proxies and .netrc of the environment: a token must go to the daemon and nowhere else.
            trust_env=False,
            follow_redirects=False,
        )
        self._turns = asyncio.Semaphore(_QUESTIONS_MAX)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def decide(self, report: BootReport) -> BootAnswer:
        """Return the daemon's decision about one boot.

        It isn't retried: the machine boots from its disk meanwhile.

        Raises:
            ServerUnreachableError: there is no valid answer.
            ServerRefusedError: the daemon refuses the question.
        """
        try:
            async with asyncio.timeout(TURN_S):
                await self._turns.acquire()
        except TimeoutError as error:
            raise ServerUnreachableError(
                f"the daemon at {self.server} answers too slowly: {_QUESTIONS_MAX} boots wait for it already"
            ) from error
        try:
            return await self._ask(report)
        finally:
            self._turns.release()

    async def _ask(self, report: BootReport) -> BootAnswer:
        body = _REPORT.dump_python(report, mode="json")
        try:
            async with asyncio.timeout(ANSWER_S), self._http.stream("POST", BOOT_PATH, json=body) as response:
                content = bytearray()
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > _ANSWER_BYTES_MAX:
                        raise ServerUnreachableError(
                            f"the answer of {self.server} is too long: is it a daemon?"
                        )
        except (httpx.TransportError, TimeoutError) as error:
            raise ServerUnreachableError(
                f"no answer from the daemon at {self.server} within {ANSWER_S:g} s "
                f"({str(error) or type(error).__name__}): check that `diskcast serve` runs there"
            ) from error
        if not response.is_success:
            raise ServerRefusedError(
                f"the daemon refused the question about a boot with HTTP {response.status_code}"
                f"{_detail(bytes(content))}: give a token of role boot with --token-file (diskcast tokens create NAME "
                "--role boot)"
            )
        try:
            return _ANSWER.validate_json(bytes(content))
        except pydantic.ValidationError as error:
            raise ServerUnreachableError(
                f"invalid answer from {self.server}: check that it is a daemon of the same version"
            ) from error


def _detail(content: bytes) -> str:
    try:
        problem = json.loads(content)
    except ValueError:
        return ""
    detail = problem.get("detail") if isinstance(problem, dict) else None
    return f" ({str(detail)[:200]})" if detail else ""
