"""Admission to a cast's control API: the bearer that a request must carry, checked before its body is read.

The certificate protects the machine from a false sender, the bearer protects the cast from strangers, who could
otherwise fill its roster, start it early or have its manifest sent again and again.
"""

from __future__ import annotations

import dataclasses
import hmac
import ssl
from typing import Final, Protocol

OPEN_RECEIVERS_PER_ADDRESS_MAX: Final = 4
"""Most receivers of an open cast at one address: several disks of one machine, but no roster full of inventions."""


@dataclasses.dataclass(frozen=True, slots=True)
class AdmittedMachine:
    """A client that may use the control API.

    Attributes:
        machine_id: the machine that the bearer was made for; None if it names none.
    """

    machine_id: str | None = None


class Admission(Protocol):
    """The rule that says who may use the control API of a cast.

    Attributes:
        receivers_per_address_max: most receivers that may join from one address; None for no limit.
        proves_membership: an admitted client is no stranger, whose connection is closed first when there are too many.
    """

    receivers_per_address_max: int | None
    proves_membership: bool

    def admit(self, bearer: str, address: str) -> AdmittedMachine | None:
        """Return the machine that the bearer admits; None to refuse the request.

        Args:
            bearer: the secret of the ``Authorization`` header; empty without one.
            address: the client's address.
        """


class JoinSecret:
    """The rule of ``diskcast send``: everybody who has the join code may join."""

    receivers_per_address_max: int | None = None
    proves_membership = True

    def __init__(self, secret: str) -> None:
        """Admit the holders of this secret, the second half of the join code."""
        self._secret = secret.encode()

    def admit(self, bearer: str, address: str) -> AdmittedMachine | None:
        """Admit the join secret."""
        return AdmittedMachine() if hmac.compare_digest(bearer.encode(), self._secret) else None


class OpenAdmission:
    """The rule of ``diskcast send --open``: everybody on the network may join, a few at each address."""

    proves_membership = False

    def __init__(self, receivers_per_address_max: int | None = OPEN_RECEIVERS_PER_ADDRESS_MAX) -> None:
        """Admit everybody."""
        self.receivers_per_address_max = receivers_per_address_max

    def admit(self, bearer: str, address: str) -> AdmittedMachine | None:
        """Admit everybody."""
        return AdmittedMachine()


@dataclasses.dataclass(frozen=True, slots=True)
class CastAccess:
    """The way into a cast.

    Attributes:
        admission: the rule for its control API.
        tls: the TLS context of its control API.
        pin: the pin of its certificate.
        join_code: the code that operators type; empty if machines get in by other means.
        own_bearer: a bearer that another run of the same cast would accept from this one; empty if there is none.
    """

    admission: Admission
    tls: ssl.SSLContext
    pin: str
    join_code: str = dataclasses.field(default="", repr=False)
    own_bearer: str = dataclasses.field(default="", repr=False)
