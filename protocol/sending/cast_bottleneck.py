"""The bottleneck of a cast: the sender, the ceiling, the network, or one receiver."""

from __future__ import annotations

from protocol.model.bottleneck import NO_BOTTLENECK, Bottleneck, Cause
from protocol.sending.rate.rate_control import RateController
from protocol.sending.roster import Roster
from protocol.sending.transmission.cast_demand import CastDemand
from protocol.sending.transmission.transmission_meter import TransmissionMeter


class CastBottleneck:
    """Determination of the bottleneck while a cast sends its image.

    Attributes:
        seconds: duration of each bottleneck so far.
    """

    def __init__(
        self,
        demand: CastDemand,
        transmission: TransmissionMeter,
        rate_control: RateController,
        roster: Roster,
    ) -> None:
        self.seconds: dict[Bottleneck, float] = {}
        self._demand = demand
        self._transmission = transmission
        self._rate_control = rate_control
        self._roster = roster

    @property
    def current(self) -> Bottleneck:
        """The current bottleneck."""
        if self._demand.image.idle and not self._transmission.read_stalled:
            return self._slowest_receiver()
        starved_by = self._transmission.starved_by(self._rate_control.rate_bytes_per_s)
        if starved_by is not None:
            return Bottleneck(starved_by)
        return self._rate_control.bottleneck

    def note(self, bottleneck: Bottleneck, elapsed_s: float) -> None:
        """Add a time with this bottleneck."""
        self.seconds[bottleneck] = self.seconds.get(bottleneck, 0.0) + elapsed_s

    def _slowest_receiver(self) -> Bottleneck:
        """Return the bottleneck with nothing to send: the receiver with the fullest buffers."""
        busy = [record for record in self._roster.active if record.bottleneck != Cause.NETWORK]
        if not busy:
            return NO_BOTTLENECK
        fullest = max(busy, key=lambda record: record.fill)
        return Bottleneck(Cause(fullest.bottleneck), fullest.receiver_id)
