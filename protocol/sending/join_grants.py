"""Admission to a cast: the checks of the control API's requests, and the grant that answers a join."""

from __future__ import annotations

import hmac

import numpy as np
from numpy.typing import NDArray

from protocol.errors import JoinRefusedError
from protocol.image.manifest import Manifest
from protocol.image.manifest_object import manifest_hashes
from protocol.model.session_records import CastParameters, JoinGrant, ReceiverId
from protocol.sending.feedback.grtt import GrttEstimator
from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.roster import Roster
from protocol.sending.sender_run import SenderRun


class JoinGrants:
    """Checks and grants of one run of a cast."""

    def __init__(
        self,
        parameters: CastParameters,
        manifest: Manifest,
        run: SenderRun,
        roster: Roster,
        grtt: GrttEstimator,
    ) -> None:
        self._parameters = parameters
        self._manifest_hashes = manifest_hashes(parameters, manifest.data)
        self._block_count = manifest.block_count
        self._run = run
        self._roster = roster
        self._grtt = grtt

    def check_need(self, need: NDArray[np.bool_] | None) -> None:
        """Raise :class:`JoinRefusedError` unless the need-bitmap fits the image; None is all blocks."""
        if need is not None and need.shape != (self._block_count,):
            raise JoinRefusedError(
                f"the need-bitmap has {need.size} blocks, the image {self._block_count}: fetch the manifest again"
            )

    def check_key(self, receiver_id: ReceiverId, key: bytes) -> None:
        """Raise :class:`JoinRefusedError` unless ``key`` is that receiver's."""
        record = self._roster.records.get(receiver_id)
        if record is None or not hmac.compare_digest(record.key, key):
            raise JoinRefusedError("unknown receiver or wrong key: join the cast again")

    def grant(
        self,
        record: ReceiverRecord,
        *,
        manifest_by_multicast: bool,
        next_sequence: int,
        report_interval_s: float,
    ) -> JoinGrant:
        """Return the answer to a receiver's join.

        Args:
            record: the receiver.
            manifest_by_multicast: it waits for the manifest, which is cast.
            next_sequence: number of the next datagram.
            report_interval_s: time between two of its reports.
        """
        return JoinGrant(
            parameters=self._parameters,
            receiver_id=record.receiver_id,
            key=record.key,
            run_secret=self._run.keys.secret,
            control_key=self._run.control_key,
            next_sequence=next_sequence,
            next_counter=self._run.signer.next_counter,
            manifest_by_multicast=manifest_by_multicast,
            report_interval_s=report_interval_s,
            grtt_s=self._grtt.grtt_s,
            receiver_count=self._roster.active_count,
            manifest_hashes=self._manifest_hashes if manifest_by_multicast else b"",
        )
