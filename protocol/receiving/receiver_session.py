"""The receiver's side of a cast, sans-IO: datagrams come in; assembled blocks and feedback go out.

The shell passes in batches of received frames and other datagrams, takes events, unicasts the feedback datagrams that
are due, and reports the result of each assembled block.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from protocol.constants import (
    ANNOUNCE_INTERVAL_S,
    DATA_HEADER_BYTES,
    NACK_DATAGRAMS_PER_ROUND_MAX,
    NACK_RETRY_GRTT_COUNT,
    NACK_RETRY_MIN_S,
    NACK_RUNS_MAX,
    POISONED_BLOCKS_MAX,
    REPAIR_LATENCY_S,
    RESTART_QUESTION_INTERVAL_S,
)
from protocol.errors import WireError
from protocol.image.manifest import Manifest
from protocol.model.session_records import JoinGrant
from protocol.receiving.arrival import ArrivalMeter
from protocol.receiving.block_assembly import AssembledBlock, BufferPool
from protocol.receiving.events import (
    BlockAssembled,
    BlockFetchDue,
    CastEnded,
    Demoted,
    Dropped,
    ManifestReceived,
    ManifestRejected,
    ReceiverEvent,
    Reinstated,
    RestartSuspected,
    SenderSilent,
)
from protocol.receiving.manifest_reception import ManifestReception, ManifestStore, MemoryStore
from protocol.receiving.object_reception import ObjectReception
from protocol.receiving.phases import PHASES, ReceptionPhase, ReceptionTrigger
from protocol.receiving.receiver_statistics import ReceiverStatistics
from protocol.receiving.report_schedule import ReportSchedule
from protocol.shared.feedback_timing import nack_backoff_s
from protocol.shared.sequence import FollowedSequence, LossCounter
from protocol.trust.block_cipher import BlockCipher
from protocol.trust.group_keys import derive_group_keys
from protocol.trust.symbol_digests import SymbolDigests
from protocol.wire.batch import HeaderFilter, header_view
from protocol.wire.bitmap import bitmap_holds
from protocol.wire.codec import foreign_version_untrusted
from protocol.wire.control_codec import ControlVerifier, control_type_untrusted
from protocol.wire.feedback_codec import FeedbackMessage, encode_feedback
from protocol.wire.messages import (
    BOTTLENECKS,
    Announce,
    BlockDigests,
    CastObject,
    EndOfTransmission,
    Flush,
    Nack,
    Poisoned,
    Report,
    Standing,
)

_SILENT_S = 3 * ANNOUNCE_INTERVAL_S
"""Silence of the sender until a :class:`SenderSilent` event: three missed announcements."""

_NOT_THIS_RUN = frozenset({"bad_tag", "bad_signature"})
"""Reasons for rejecting the control messages of another run, and forged ones."""

_ROUND_PAUSE_MIN_S = 0.005
"""Shortest time between two NACK rounds: bounds the work at the smallest round-trip times."""


class ReceiverSession:
    """One receiver's part in a cast; used from one thread."""

    def __init__(
        self,
        grant: JoinGrant,
        *,
        assembly_bytes: int,
        rng: random.Random,
        now: float,
        manifest_store: ManifestStore | None = None,
    ) -> None:
        """Start with the sender's grant.

        Args:
            grant: the sender's answer to the join.
            assembly_bytes: size of the buffer pool.
            rng: randomness for the back-off.
            now: monotonic seconds.
            manifest_store: storage for a manifest that arrives by multicast; None for memory.
        """
        parameters = grant.parameters
        self.grant = grant
        self.parameters = parameters
        self.statistics = ReceiverStatistics()
        self.rejects: dict[str, int] = {}
        self.loss = LossCounter()
        self._position = FollowedSequence(grant.next_sequence & 0xFFFFFFFF)
        self.grtt_s = grant.grtt_s
        self.receiver_count = grant.receiver_count
        self.demoted = False
        self.foreign_version: int | None = None
        """Wire version of a program of another version that was heard on the group; None for none."""
        self._pool = BufferPool(
            pool_bytes=assembly_bytes,
            symbols_per_block_max=parameters.block_symbols_max,
            symbol_bytes=parameters.symbol_bytes,
        )
        keys = derive_group_keys(parameters, grant.run_secret)
        self.cipher = BlockCipher.of(parameters, keys)
        """Cipher of the cast's blocks; None if they aren't encrypted."""
        self._filter = HeaderFilter(
            cast_id=parameters.cast_id, tag_key=keys.data_tag, next_sequence=grant.next_sequence
        )
        self._verifier = ControlVerifier(
            cast_id=parameters.cast_id,
            tag_key=keys.control_tag,
            control_key=grant.control_key,
            next_counter=grant.next_counter,
        )
        self._rng = rng
        self._events: list[ReceiverEvent] = []
        self._image: ObjectReception | None = None
        self._manifest: ManifestReception | None = None
        if grant.manifest_by_multicast:
            store = MemoryStore(parameters.manifest_bytes) if manifest_store is None else manifest_store
            self._manifest = ManifestReception(
                parameters, self._pool, store, self.cipher, grant.manifest_hashes
            )
        self._arrival = ArrivalMeter(DATA_HEADER_BYTES + parameters.symbol_bytes)
        self._counter = 0
        self._suspect_after = now
        self._echo_us = 0
        self._echo_heard_at = now
        self._heard_at = now
        self._silence_reported_at = now
        self._reports = ReportSchedule(grant.report_interval_s, rng, now)
        self._dropped = False
        self._round_at: float | None = None
        self._phase = ReceptionPhase.AWAITING_MANIFEST

    # -- state for the shell ----------------------------------------------------------------------------------

    @property
    def fill(self) -> float:
        """Return the share of the buffers that wait for this machine, 0..1: the socket's or the assembly's."""
        return max(self.backlog, self.statistics.socket_fill)

    @property
    def backlog(self) -> float:
        """Return the share of the assembly's buffers whose blocks are being decoded or written.

        Incomplete blocks aren't included: they wait for the sender, and slowing it down would make them wait longer.
        """
        incomplete_count = sum(reception.incomplete_count for reception in self._receptions())
        used_count = self._pool.capacity - self._pool.free_count
        return (used_count - incomplete_count) / self._pool.capacity

    @property
    def need(self) -> NDArray[np.bool_] | None:
        """Return ``bool[block_count]`` of blocks not verified yet; None before the manifest is set."""
        return None if self._image is None else self._image.stage != 0

    @property
    def heard_sequence(self) -> int | None:
        """Return the number after the last received symbol; None before the first."""
        return self._position.next_sequence if self.loss.expected_count else None

    @property
    def needed_count(self) -> int:
        """Return the number of blocks not verified yet; 0 before the manifest is set."""
        return 0 if self._image is None else self._image.unsettled_count

    @property
    def missing_count(self) -> int:
        """Return the number of blocks that the pass moved beyond and that are incomplete."""
        return 0 if self._image is None else self._image.missing_count

    @property
    def pool_drop_count(self) -> int:
        """Return the number of symbols dropped without a free buffer."""
        return sum(reception.pool_drop_count for reception in self._receptions())

    def next_events(self) -> list[ReceiverEvent]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    def _advance(self, trigger: ReceptionTrigger) -> bool:
        """Take a step of the transition table; return False, and stay, if the phase has none for ``trigger``."""
        phase = PHASES[self._phase].get(trigger)
        if phase is None:
            return False
        self._phase = phase
        return True

    # -- receiving --------------------------------------------------------------------------------------------

    def set_manifest(
        self,
        manifest: Manifest,
        need: NDArray[np.bool_],
        now: float,
        *,
        unscanned: NDArray[np.bool_] | None = None,
    ) -> None:
        """Set the manifest: from now on, image blocks can be placed.

        Args:
            manifest: the image's manifest.
            need: ``bool[block_count]`` of blocks that the target misses, as reported to the sender.
            now: monotonic seconds.
            unscanned: ``bool[block_count]`` of blocks that haven't been compared with the target yet.
        """
        legal = self._advance(ReceptionTrigger.MANIFEST_SET)
        assert legal, "the manifest is set once"
        self._manifest = None
        self._image = ObjectReception(
            CastObject.IMAGE,
            source_symbols=manifest.source_symbols(self.parameters.symbol_bytes, self.parameters.tag_bytes),
            stored_bytes=manifest.stored_bytes,
            tag_bytes=self.parameters.tag_bytes,
            need=need,
            pool=self._pool,
            joined_before_start=self.grant.manifest_by_multicast,
            unscanned=unscanned,
        )
        self._reports.due_at = now

    def receive_frames_untrusted(
        self,
        frames: NDArray[np.uint8],
        now: float,
        *,
        arrived_at: float | None = None,
        arrived_row: int = -1,
    ) -> None:
        """Process datagrams that have exactly the size of a SYMBOL.

        Args:
            frames: ``uint8[n, 32 + symbol_bytes]``; copied from, the caller may reuse it at once.
            now: monotonic seconds.
            arrived_at: arrival of one of the last datagrams at this machine, monotonic seconds; None if only ``now`` is
                known, which includes the delay of this machine itself.
            arrived_row: row of that datagram.
        """
        if frames.shape[0] == 0:
            return
        accepted = self._filter.accept_untrusted(frames, self.rejects)
        stamped = arrived_at is not None and accepted[arrived_row]
        sent_at = int(header_view(frames)["sent_at"][arrived_row]) if stamped else None
        if not accepted.all():
            frames = frames[accepted]
            if frames.shape[0] == 0:
                return
        headers = header_view(frames)
        self._note_heard(now)
        self.statistics.frames_received_count += frames.shape[0]
        self.statistics.bytes_received += frames.size
        self._position.add(headers["sequence"])
        self.loss.add(headers["sequence"], self._position.highest_plausible)
        self._arrival.add(self.loss, sent_at, now if arrived_at is None else arrived_at)
        image_rows = headers["object"] == CastObject.IMAGE
        if self._manifest is not None and image_rows.any():
            self._end_manifest_pass(now)
        for reception, rows in (
            (self._image, image_rows),
            (self._manifest.reception if self._manifest else None, ~image_rows),
        ):
            if reception is not None and rows.any():
                self._receive_object(reception, frames, headers, rows, now)
        self._reports.watch(self.fill, self._arrival.queue_delay_s, self.receiver_count, now)

    def _end_manifest_pass(self, now: float) -> None:
        """End the manifest's pass: image data follows the whole manifest, so its missing symbols need NACKs."""
        assert self._manifest is not None
        self._manifest.end_pass(self._position.next_sequence)
        self._manifest.reception.settle_losses(self._position.next_sequence)
        self._schedule_round(now)

    def _receive_object(
        self,
        reception: ObjectReception,
        frames: NDArray[np.uint8],
        headers: NDArray[np.void],
        rows: NDArray[np.bool_],
        now: float,
    ) -> None:
        if not rows.all():
            frames, headers = frames[rows], headers[rows]
        if reception.object_index == CastObject.IMAGE and self.statistics.first_data_at is None:
            self.statistics.first_data_at = now
        assembled, invalid_count = reception.receive(
            headers,
            frames[:, DATA_HEADER_BYTES:],
            position=self._position.next_sequence,
            hold_s=self.grtt_s + REPAIR_LATENCY_S,
            now=now,
        )
        if invalid_count:
            self.rejects["bad_field"] = self.rejects.get("bad_field", 0) + invalid_count
        reception.settle_losses(self._position.next_sequence)
        if self.demoted:
            reception.abandon_missing()
        for block in assembled:
            self._take_assembled(block, now)
        if assembled and not any(item.open_count for item in self._receptions()):
            self._round_at = None  # the next loss draws a back-off of its own
        self._schedule_round(now)

    def _take_assembled(self, block: AssembledBlock, now: float) -> None:
        if block.object == CastObject.MANIFEST:
            self._take_manifest_block(block, now)
            return
        self.statistics.blocks_assembled_count += 1
        if block.nacked:
            self.statistics.blocks_repaired_by_nack_count += 1
        elif block.erasure_count:
            self.statistics.blocks_repaired_by_parity_count += 1
        self._events.append(BlockAssembled(block))

    def _take_manifest_block(self, block: AssembledBlock, now: float) -> None:
        assert self._manifest is not None
        if not self._manifest.take_untrusted(block):
            self._note_poisoned(self._manifest.reception, block, now)
            return
        self.release(block)
        if not self._manifest.complete:
            return
        data = self._manifest.received()
        self._events.append(ManifestRejected() if data is None else ManifestReceived(data))
        self._manifest = None

    def receive_datagram_untrusted(self, datagram: bytes, now: float) -> None:
        """Process a datagram of any other size; a bad one is counted in ``rejects`` and dropped."""
        try:
            self._receive_control_untrusted(datagram, now)
        except WireError as error:
            self.rejects[error.reason] = self.rejects.get(error.reason, 0) + 1
            if error.reason == "bad_version":
                self.foreign_version = foreign_version_untrusted(datagram)
            elif error.reason in _NOT_THIS_RUN and control_type_untrusted(datagram) is Announce:
                self._suspect_restart(now)

    def _suspect_restart(self, now: float) -> None:
        """Report an ANNOUNCE of this cast that another run made, or a forger."""
        if now >= self._suspect_after:
            self._suspect_after = now + RESTART_QUESTION_INTERVAL_S
            self._events.append(RestartSuspected())

    def _receive_control_untrusted(self, datagram: bytes, now: float) -> None:
        message = self._verifier.decode_untrusted(datagram)
        self._note_heard(now)
        if isinstance(message, EndOfTransmission):
            if self._advance(ReceptionTrigger.CAST_ENDED):
                self._events.append(CastEnded(message.outcome, message.reason))
        elif isinstance(message, Standing):
            self._receive_standing(message, now)
        elif isinstance(message, BlockDigests):
            self._receive_digests(message, now)
        elif isinstance(message, Flush):
            self._receive_flush(message, now)
        else:
            self._take_group_state(message, now)

    def _receive_standing(self, standing: Standing, now: float) -> None:
        receiver_id = self.grant.receiver_id
        demoted = bitmap_holds(standing.demoted, receiver_id)
        if demoted != self.demoted:
            self.demoted = demoted
            self._events.append(Demoted() if demoted else Reinstated())
            self._schedule_round(now)
        if bitmap_holds(standing.dropped, receiver_id) and not self._dropped:
            self._dropped = True
            self._events.append(Dropped())

    def _receive_digests(self, message: BlockDigests, now: float) -> None:
        digests = SymbolDigests(message.salt, message.digests)
        for reception in self._receptions():
            if reception.object_index == message.object:
                reception.receive_digests(message.block, digests, now)
        self._schedule_round(now)

    def _receive_flush(self, flush: Flush, now: float) -> None:
        self._take_group_state(flush, now)
        self.loss.advance(flush.next_sequence & 0xFFFFFFFF)
        self._position.advance(flush.next_sequence & 0xFFFFFFFF)
        for reception in self._receptions():
            if reception.object_index <= flush.object:
                reception.flush()
        self._schedule_round(now)

    def _take_group_state(self, message: Announce | Flush, now: float) -> None:
        self._filter.note_signed(message.next_sequence)
        self._echo_us = message.sent_at_us
        self._echo_heard_at = now
        self.grtt_s = message.grtt_us / 1e6
        self.receiver_count = message.receiver_count
        self._reports.interval_s = message.report_interval_ms / 1e3

    def _note_heard(self, now: float) -> None:
        self._heard_at = now
        self._silence_reported_at = now

    # -- results of the scan ----------------------------------------------------------------------------------

    def blocks_held(self, blocks: NDArray[np.integer]) -> None:
        """Note that the target already holds these image blocks; those received during the scan are written anyway."""
        assert self._image is not None
        held = self._image.mark_held(blocks)
        self.statistics.blocks_verified_count += int(held.size)

    def not_arrived(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of ``blocks`` that weren't received completely during the scan."""
        assert self._image is not None
        return self._image.not_arrived(blocks)

    def blocks_missing(self, blocks: NDArray[np.integer]) -> None:
        """Note that the target misses these image blocks, after that was reported to the sender."""
        assert self._image is not None
        self._image.mark_needed(blocks)

    # -- results of the pipeline ------------------------------------------------------------------------------

    def release(self, assembled: AssembledBlock) -> None:
        """Release a block's buffer after the block was written or discarded."""
        self._pool.release(assembled)

    def block_written(self, block: int) -> None:
        """Note that an image block is on the target, not verified yet."""
        assert self._image is not None
        self._image.mark_written(block)

    def blocks_verified(self, blocks: NDArray[np.integer]) -> None:
        """Note that image blocks were read back and found correct."""
        assert self._image is not None
        self._image.mark_settled(blocks)
        self.statistics.blocks_verified_count += int(blocks.size)

    def block_rejected(self, block: int, now: float) -> None:
        """Note that an image block is wrong, as assembled or as read back: NACK all of it again."""
        assert self._image is not None
        self.statistics.blocks_rejected_count += 1
        self._image.mark_rejected(block)
        self._schedule_round(now)

    def block_poisoned(self, assembled: AssembledBlock, now: float) -> None:
        """Note that an image block decodes to wrong bytes, and take its buffer: the sender tells its forged symbols."""
        assert self._image is not None
        self._note_poisoned(self._image, assembled, now)

    def block_fetched(self, block: int, cast_bytes: memoryview) -> None:
        """Take an image block, as cast, that the control API served."""
        assert self._image is not None
        assembled = self._image.take_fetched(block)
        if assembled is not None:
            assembled.fill(cast_bytes)
            self.statistics.blocks_fetched_count += 1
            self._events.append(BlockAssembled(assembled))

    def block_unfetchable(self, block: int, now: float) -> None:
        """Note that the control API refuses an image block: NACK all of it again."""
        assert self._image is not None
        assembled = self._image.take_fetched(block)
        if assembled is not None:
            self.release(assembled)
            self._image.mark_rejected(block)
            self._schedule_round(now)

    def _note_poisoned(self, reception: ObjectReception, assembled: AssembledBlock, now: float) -> None:
        self.statistics.blocks_rejected_count += 1
        if self.demoted and reception.object_index == CastObject.IMAGE:
            self.release(
                assembled
            )  # its turn comes in the tail, and the buffer serves other blocks until then
            reception.mark_rejected(assembled.block)
        else:
            reception.mark_poisoned(assembled, now)
        self._schedule_round(now)

    # -- sending ----------------------------------------------------------------------------------------------

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """Return the NACKs and REPORTs that are due, for the sender's feedback port."""
        datagrams = []
        if now >= self._silence_reported_at + _SILENT_S:
            self._silence_reported_at = now
            self._events.append(SenderSilent(now - self._heard_at))
        if self._round_at is not None and now >= self._round_at:
            self._round_at = None
            for reception in self._receptions():
                datagrams.extend(self._nack_round(reception, now))
                datagrams.extend(self._poisoned_round(reception, now))
            self._schedule_round(now)
        if self._reports.take_due(now):
            datagrams.append(self.report(now))
        return datagrams

    def next_timer(self) -> float:
        """Return the time of the next call of :meth:`datagrams_to_send`, absolute monotonic seconds."""
        times = [self._reports.due_at, self._silence_reported_at + _SILENT_S]
        if self._round_at is not None:
            times.append(self._round_at)
        return min(times)

    def report(self, now: float) -> bytes:
        """Return a REPORT of the current state."""
        statistics = self.statistics
        queue_delay_s = self._arrival.queue_delay_s
        self._reports.note_reported(self.fill, queue_delay_s, now)
        recent_expected_count, recent_received_count = self._arrival.recent_counts
        pool_is_fuller = self.backlog >= statistics.socket_fill
        received_count = min(self.loss.received_count, self.loss.expected_count)
        return self._encode(
            Report(
                echo_us=self._echo_us,
                echo_delay_us=min(int((now - self._echo_heard_at) * 1e6), (1 << 32) - 1),
                expected_count=self.loss.expected_count,
                received_count=received_count,
                loss_event_count=self.loss.loss_event_count,
                recent_expected_count=recent_expected_count,
                recent_received_count=recent_received_count,
                arriving_bytes_per_s=int(self._arrival.rate_bytes_per_s(now)),
                queue_delay_us=int(queue_delay_s * 1e6),
                socket_drop_count=statistics.socket_drop_count,
                pool_drop_count=self.pool_drop_count,
                fill_permille=min(1000, int(self.fill * 1000)),
                buffer_bytes=self._pool.size_bytes if pool_is_fuller else statistics.socket_buffer_bytes,
                bottleneck=BOTTLENECKS.index(statistics.bottleneck),
                blocks_verified_count=statistics.blocks_verified_count,
                blocks_needed_count=self.needed_count,
                bytes_written=statistics.bytes_written,
                nacks_sent_count=statistics.nacks_sent_count,
                parity_repaired_count=statistics.blocks_repaired_by_parity_count,
            )
        )

    def _nack_round(self, reception: ObjectReception, now: float) -> list[bytes]:
        if self.demoted and reception.object_index == CastObject.IMAGE:
            return []
        blocks_max = NACK_RUNS_MAX * NACK_DATAGRAMS_PER_ROUND_MAX
        retry_s = max(NACK_RETRY_MIN_S, NACK_RETRY_GRTT_COUNT * self.grtt_s)
        due = reception.take_due_nacks(blocks_max, retry_at=now + retry_s, now=now)
        if not due:
            return []
        rows = _as_runs(due)
        datagrams = []
        for start in range(0, len(rows), NACK_RUNS_MAX):
            nack = Nack(
                object=reception.object_index,
                sequence=self._position.next_sequence,
                deficits=tuple(rows[start : start + NACK_RUNS_MAX]),
            )
            datagrams.append(self._encode(nack))
        self.statistics.nacks_sent_count += len(datagrams)
        self.statistics.nacked_symbol_count += sum(deficit for _, deficit in due)
        return datagrams

    def _poisoned_round(self, reception: ObjectReception, now: float) -> list[bytes]:
        """Request digests of poisoned blocks; start to fetch those for which that didn't help."""
        retry_s = max(NACK_RETRY_MIN_S, NACK_RETRY_GRTT_COUNT * self.grtt_s)
        for assembled in reception.start_fetches(now):
            if reception.object_index == CastObject.MANIFEST:
                reception.release_all()
                self._events.append(ManifestRejected())
                self._manifest = None
                return []
            self._events.append(BlockFetchDue(assembled.block, assembled.cast_bytes))
        due = reception.take_due_digest_requests(POISONED_BLOCKS_MAX, retry_s=retry_s, now=now)
        if not due:
            return []
        return [
            self._encode(
                Poisoned(
                    object=reception.object_index,
                    blocks=tuple((block,) for block in due),
                )
            )
        ]

    def _schedule_round(self, now: float) -> None:
        """Plan a NACK round after a random back-off, unless one is planned already."""
        if self.demoted and self._manifest is None:
            return  # its turn comes in the tail
        if self._round_at is None and any(reception.open_count for reception in self._receptions()):
            backoff_s = nack_backoff_s(self._rng, self.grtt_s, self.receiver_count)
            self._round_at = now + max(_ROUND_PAUSE_MIN_S, backoff_s)

    def _receptions(self) -> list[ObjectReception]:
        receptions = []
        if self._manifest is not None:
            receptions.append(self._manifest.reception)
        if self._image is not None:
            receptions.append(self._image)
        return receptions

    def _encode(self, message: FeedbackMessage) -> bytes:
        self._counter += 1
        return encode_feedback(
            message,
            cast_id=self.parameters.cast_id,
            receiver_id=self.grant.receiver_id,
            counter=self._counter,
            key=self.grant.key,
        )


def _as_runs(due: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return ``(first block, count, deficit)`` of consecutive blocks with the same deficit."""
    rows: list[tuple[int, int, int]] = []
    for block, deficit in due:
        if rows and rows[-1][0] + rows[-1][1] == block and rows[-1][2] == deficit:
            first, count, _ = rows[-1]
            rows[-1] = (first, count + 1, deficit)
        else:
            rows.append((block, 1, deficit))
    return rows
