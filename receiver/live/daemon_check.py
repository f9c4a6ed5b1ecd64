"""The first contact with the daemon: it answers and has an accepted certificate, or the reason in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from protocol.errors import CertificateError, ConfigurationError
from protocol.program.peer_trust import PeerTrust
from receiver.live.messages import INVALID_SETTING, NO_DAEMON, NO_PIN, NO_SERVER, WRONG_PIN, BootStopError
from receiver.reception.network.http_client import Unreachable
from receiver.service.machine_credentials import MachineCredentials
from receiver.service.server_client import ServerClient

DAEMON_WAIT_S: Final = 30.0
"""Time for one daemon to answer: longer than the restart of one. The switch port forwards already, as DHCP has shown,
and a machine that gives up asks again two minutes later."""
RETRY_S: Final = 2.0


def await_daemon(
    servers: Sequence[str], pins: Sequence[str], report: Callable[[str], None], wait_s: float = DAEMON_WAIT_S
) -> str:
    """Wait until a daemon answers, and return its URL.

    Args:
        servers: URLs of daemons of one database.
        pins: pins of their certificates.
        report: shows a step.
        wait_s: time for one of them to answer.

    Raises:
        BootStopError: none is named, none answers in time, or none has an accepted certificate.
    """
    if not servers:
        raise BootStopError(NO_SERVER.text())
    if not pins and any(url.startswith("https:") for url in servers):
        raise BootStopError(NO_PIN.text())
    try:
        trust = PeerTrust.of_options(pins, None)
        clients = [ServerClient(url, MachineCredentials(""), trust) for url in servers]
    except ConfigurationError as error:
        raise BootStopError(INVALID_SETTING.text(error=error)) from error
    return trio.run(_first_answer, clients, report, wait_s)


async def _first_answer(clients: Sequence[ServerClient], report: Callable[[str], None], wait_s: float) -> str:
    deadline = trio.current_time() + wait_s
    reported = False
    while True:
        wrong: list[str] = []
        silent: list[str] = []
        for client in clients:
            try:
                await client.health()
            except CertificateError as error:
                wrong.append(str(error))
            except Unreachable as error:
                silent.append(str(error))
            else:
                return client.url
        if wrong and not silent:
            raise BootStopError(WRONG_PIN.text(reason=wrong[0]))
        if trio.current_time() >= deadline:
            raise BootStopError(
                WRONG_PIN.text(reason=wrong[0]) if wrong else NO_DAEMON.text(reason=silent[0])
            )
        if not reported:
            report(f"waiting for the daemon: {(silent or wrong)[0]}")
            reported = True
        await trio.sleep(RETRY_S)
