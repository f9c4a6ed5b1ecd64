"""Limits that receivers have reported recently, and their confirmation by other reports.

A member may report anything. The rate follows a limit only as far as a second report confirms it: one of another
receiver, as when a link of many is full, or the next one of the same receiver. A receiver that keeps reporting a limit
far below the others' is a straggler, and doesn't count at all.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from protocol.model.session_records import ReceiverId

_OTHERS_S: Final = 0.5
"""Time in which reports describe the same event at several receivers: a few report intervals."""
_OWN_S: Final = 2.0
"""Time in which a receiver's next report confirms its last one, if the limit lasts."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Claim:
    bytes_per_s: float
    at: float


class LimitClaims:
    """The latest claim of each receiver."""

    def __init__(self) -> None:
        self._latest: dict[ReceiverId, _Claim] = {}
        # The two lowest recent claims of different receivers, so that a thousand reports of one event stay cheap.
        self._lowest: list[tuple[ReceiverId, _Claim]] = []
        self._unconfirmed: dict[ReceiverId, _Claim] = {}

    def add(self, receiver_id: ReceiverId, bytes_per_s: float, now: float) -> float:
        """Record a claim.

        Args:
            receiver_id: the reporting receiver.
            bytes_per_s: the limit that it reports.
            now: monotonic seconds.

        Returns:
            The limit that earlier claims confirm, at least ``bytes_per_s``; infinite without a confirmation.
        """
        own = self._latest.get(receiver_id)
        confirmed = own.bytes_per_s if own is not None and now - own.at <= _OWN_S else math.inf
        claim = _Claim(bytes_per_s, now)
        self._latest[receiver_id] = claim
        recent = [item for item in self._lowest if now - item[1].at <= _OTHERS_S and item[0] != receiver_id]
        confirmed = max(bytes_per_s, min([confirmed, *(other.bytes_per_s for _, other in recent)]))
        self._lowest = sorted([*recent, (receiver_id, claim)], key=lambda item: item[1].bytes_per_s)[:2]
        self._unconfirmed.pop(receiver_id, None)
        if confirmed > bytes_per_s:
            self._unconfirmed[receiver_id] = claim
        return confirmed

    def confirmed_by(
        self, receiver_id: ReceiverId, bytes_per_s: float, now: float
    ) -> dict[ReceiverId, float]:
        """Return the limits of other receivers that a claim of this one confirms; each is returned once."""
        confirmed = {}
        for other, claim in list(self._unconfirmed.items()):
            if now - claim.at > _OTHERS_S:
                del self._unconfirmed[other]
            elif other != receiver_id:
                confirmed[other] = max(claim.bytes_per_s, bytes_per_s)
                if bytes_per_s <= claim.bytes_per_s:
                    del self._unconfirmed[other]
        return confirmed

    def forget(self, receiver_id: ReceiverId) -> None:
        """Drop the claims of a receiver that has left."""
        self._latest.pop(receiver_id, None)
        self._unconfirmed.pop(receiver_id, None)
        self._lowest = [item for item in self._lowest if item[0] != receiver_id]
