"""Command-line options by which the agent recognises its peer, and the peer the agent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from protocol.errors import ConfigurationError
from protocol.program.options import CA_OPTION, JOIN_VARIABLE, PIN_OPTION

if TYPE_CHECKING:
    from receiver.reception.network.sender_access import SenderAccess

_JOIN_OPTION: Final = click.option(
    "--join",
    "join_text",
    envvar=JOIN_VARIABLE,
    metavar="CODE",
    help=f"Join code that diskcast send prints.  [env: {JOIN_VARIABLE}]",
)
_OPEN_OPTION: Final = click.option(
    "--open",
    "open_cast",
    is_flag=True,
    help="Accept any sender, on a trusted network (diskcast send --open).",
)


def sender_access_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--join``, ``--open``, ``--pin`` and ``--ca`` to a command, which gets them as ``access``.

    Raises:
        ConfigurationError: when the command runs: none or contradictory ones were given.
    """

    @functools.wraps(function)
    def with_access(
        *args: object,
        join_text: str | None,
        open_cast: bool,
        pins: tuple[str, ...],
        ca_file: Path | None,
        **kwargs: object,
    ) -> object:
        return function(*args, access=_access(join_text, open_cast, pins, ca_file), **kwargs)

    decorated: Callable[..., Any] = with_access
    for option in (CA_OPTION, PIN_OPTION, _OPEN_OPTION, _JOIN_OPTION):
        decorated = option(decorated)
    return decorated


def _access(
    join_text: str | None, open_cast: bool, pins: tuple[str, ...], ca_file: Path | None
) -> SenderAccess:
    from protocol.program.peer_trust import PeerTrust
    from protocol.trust.join_code import JoinCode
    from receiver.reception.network.sender_access import SenderAccess

    trust = PeerTrust.of_options(pins, ca_file)
    if open_cast:
        if join_text is not None or trust:
            raise ConfigurationError("--open accepts any sender: leave it out with --join, --pin or --ca")
        return SenderAccess(PeerTrust(any_certificate=True))
    if join_text is not None:
        access = SenderAccess.of_code(JoinCode.parse(join_text))
        return SenderAccess(trust, access.bearer, access.signer) if trust else access
    if not trust:
        raise ConfigurationError(
            "nothing was given to recognise the sender by: give --join with the code that diskcast send prints, or "
            "--open on a trusted network, for diskcast send --open"
        )
    return SenderAccess(trust)
