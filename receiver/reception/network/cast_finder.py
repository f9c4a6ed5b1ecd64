"""The search for the cast to join among all that is announced: only a sender that proves itself counts.

An ANNOUNCE is a hint, which anybody on the network can send. The agent connects to the announced URL and expects the
right certificate before it sends anything; then the sender must accept the bearer, and its own description of the cast
counts. A hint that fails is put aside, and others are tried meanwhile.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import random
import urllib.parse
from collections import Counter, OrderedDict
from typing import Final

import trio

from protocol.constants import DISCOVERY_SETTLE_S
from protocol.errors import (
    CertificateError,
    ConfigurationError,
    DiskcastError,
    JoinRefusedError,
    NoSenderError,
    ProtocolError,
    SessionError,
    WireVersionError,
)
from protocol.model.cast_state import CastState
from protocol.model.session_records import CastId
from receiver.reception.network.control_client import ControlClient
from receiver.reception.network.discovery import (
    CastChoice,
    CastOffer,
    announcement_listener,
    describe_silence,
    single_offer,
)
from receiver.reception.network.http_client import Unreachable
from receiver.reception.network.interface import ReceiveInterface
from receiver.reception.network.sender_access import SenderAccess

PROBES_MAX: Final = 16
"""Most hints that are tried at the same time; each is a thread and a connection."""

PROBES_PER_SOURCE_MAX: Final = 2
"""Most of them from one source address: one machine that invents casts mustn't hide the others' senders."""

PROBE_TIMEOUT_S: Final = 3.0
"""Timeout of one try: a sender answers within milliseconds, an invented address never."""

RETRY_AFTER_S: Final = 2.0
"""Pause before a hint that failed is tried again: its sender may just be starting."""

HINTS_MAX: Final = 64
"""Most hints that wait, and most failed ones remembered: a flood may only make the search slower."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Failure:
    error: DiskcastError | Unreachable
    retry_at: float


_Hint = tuple[CastId, str]


def _names_an_address(control_url: str) -> bool:
    """Return whether the URL names its host by address, as every sender does.

    An announcement mustn't make a room of machines look up a name, or connect to a host of somebody's choice outside.
    """
    try:
        ipaddress.ip_address((urllib.parse.urlsplit(control_url).hostname or "").partition("%")[0])
    except ValueError:
        return False
    return True


def _hint_of(offer: CastOffer) -> _Hint:
    return offer.cast_id, offer.control_url


async def find_cast(
    interface: ReceiveInterface,
    group: str,
    port: int,
    choice: CastChoice,
    access: SenderAccess,
    *,
    wait_s: float,
    rng: random.Random,
) -> CastOffer:
    """Listen on the group for a cast to join, and return the one whose sender proves itself.

    With a join code, or if the operator chose a cast, the first success is the cast. Otherwise wait
    :data:`DISCOVERY_SETTLE_S` for others after the first.

    Args:
        interface: the interface to listen on.
        group: multicast address.
        port: UDP port.
        choice: the operator's choice.
        access: the certificate to expect, and the bearer.
        wait_s: time to wait for the first matching cast.
        rng: chooses among waiting hints.

    Raises:
        CertificateError: casts were announced, but no sender has the expected certificate.
        JoinRefusedError: the sender is the right one, but refuses the bearer.
        NoSenderError: no matching cast was found in time.
        WireVersionError: only a sender of another wire version was heard.
        AmbiguousCastError: several were found.
        InterfaceError: the interface can't join the group.
        AddressInUseError: another program has the port.
    """
    async with announcement_listener(interface, group, port) as listener:
        with trio.CancelScope(deadline=trio.current_time() + wait_s) as search:
            async with trio.open_nursery() as nursery:
                finder = _Finder(choice, access, search, nursery, rng)
                while True:
                    finder.take_hint(await listener.next())
    if finder.found:
        return single_offer(list(finder.found.values()))
    if listener.other_version is not None and not finder.heard:
        raise WireVersionError(listener.other_version)
    raise finder.failure(describe_silence(interface, group, port, choice, finder.heard, wait_s))


class _Finder:
    """The state of one search.

    Attributes:
        found: casts whose senders have proved themselves.
        heard: casts that were announced, proved or not.
    """

    def __init__(
        self,
        choice: CastChoice,
        access: SenderAccess,
        search: trio.CancelScope,
        nursery: trio.Nursery,
        rng: random.Random,
    ) -> None:
        """Args:
        choice: the operator's choice.
        access: the certificate to expect, and the bearer.
        search: the scope of the search, ended early by success.
        nursery: runs the probes.
        rng: chooses among waiting hints.
        """
        self.found: dict[CastId, CastOffer] = {}
        self.heard: set[CastId] = set()
        self._choice = choice
        self._access = access
        self._search = search
        self._nursery = nursery
        self._rng = rng
        self._waiting: dict[_Hint, CastOffer] = {}
        self._running: dict[_Hint, CastOffer] = {}
        self._failures: OrderedDict[_Hint, _Failure] = OrderedDict()

    def take_hint(self, offer: CastOffer) -> None:
        """Try the announced sender, now or when there is a slot."""
        if len(self.heard) < HINTS_MAX:
            self.heard.add(offer.cast_id)
        hint = _hint_of(offer)
        failed = self._failures.get(hint)
        if (
            not _names_an_address(offer.control_url)
            or not self._choice.matches_id(offer.cast_id)
            or offer.cast_id in self.found
            or hint in self._running
            or hint in self._waiting
            or (failed is not None and trio.current_time() < failed.retry_at)
        ):
            return
        if len(self._waiting) >= HINTS_MAX:
            self._drop_one()
        self._waiting[hint] = offer
        self._start_probes()

    def _drop_one(self) -> None:
        """Forget a hint of the source with the most: it is most probably one of a flood."""
        [(loudest, _count)] = Counter(offer.source for offer in self._waiting.values()).most_common(1)
        hints = [hint for hint, offer in self._waiting.items() if offer.source == loudest]
        del self._waiting[self._rng.choice(hints)]

    def _start_probes(self) -> None:
        while len(self._running) < PROBES_MAX:
            busy = Counter(offer.source for offer in self._running.values())
            free = [
                hint for hint, offer in self._waiting.items() if busy[offer.source] < PROBES_PER_SOURCE_MAX
            ]
            if not free:
                return
            hint = self._rng.choice(free)
            self._running[hint] = self._waiting.pop(hint)
            self._nursery.start_soon(self._probe, self._running[hint])

    async def _probe(self, offer: CastOffer) -> None:
        """Ask the announced sender for its description of the cast."""
        hint = _hint_of(offer)
        error: DiskcastError | Unreachable | None = None
        try:
            proved = await self._describe(offer)
            if proved is not None and self._choice.matches(proved.cast_id, proved.image_name):
                self._accept(proved)
        except ConfigurationError:
            # Not the URL of a sender: a version before TLS, or nonsense. It won't become one.
            self._fail(hint, Unreachable(f"{offer.control_url} isn't an https:// URL"), math.inf)
        except (Unreachable, CertificateError, SessionError, ProtocolError) as caught:
            error = caught
        if error is not None:
            self._fail(hint, error, trio.current_time() + RETRY_AFTER_S)
        del self._running[hint]
        self._start_probes()

    def failure(self, silence: str) -> DiskcastError:
        """Return the most telling error of a search without success; ``silence`` describes one without any hint."""
        errors = [failure.error for failure in self._failures.values()]
        for kind in (JoinRefusedError, CertificateError):
            for error in errors:
                if isinstance(error, kind):
                    return error
        unreachable = next((str(error) for error in errors if isinstance(error, Unreachable)), "")
        if unreachable:
            return NoSenderError(
                f"a cast is announced, but its sender doesn't answer: {unreachable}; check that no firewall blocks "
                "its control port"
            )
        return NoSenderError(silence)

    async def _describe(self, offer: CastOffer) -> CastOffer | None:
        client = ControlClient(offer.control_url, self._access, timeout_s=PROBE_TIMEOUT_S)
        with trio.move_on_after(PROBE_TIMEOUT_S):
            cast = await client.cast(offer.cast_id)
            if cast.cast_id != offer.cast_id or cast.state is CastState.ENDED:
                return None
            return CastOffer(cast.cast_id, cast.image_name, client.url, offer.source)
        raise Unreachable(f"{offer.control_url}: timed out")

    def _accept(self, offer: CastOffer) -> None:
        if not self.found:
            self._search.deadline = trio.current_time() + DISCOVERY_SETTLE_S
        self.found[offer.cast_id] = offer
        if self._access.bearer or self._choice.restricted:
            self._search.cancel()

    def _fail(self, hint: _Hint, error: DiskcastError | Unreachable, retry_at: float) -> None:
        self._failures.pop(hint, None)
        self._failures[hint] = _Failure(error, retry_at)
        if len(self._failures) > HINTS_MAX:
            self._failures.popitem(last=False)
