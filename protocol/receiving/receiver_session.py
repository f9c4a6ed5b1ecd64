"""The receiver's side of a cast, sans-IO: datagrams come in; assembled blocks and feedback go out.

The shell passes in batches of received frames and other datagrams, takes events, unicasts the feedback datagrams that
are due, and reports the result of each assembled block.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from protocol.constants import DATA_HEADER_BYTES, REPAIR_LATENCY_S
from protocol.image.manifest import Manifest
from protocol.model.session_records import JoinGrant
from protocol.receiving.arrival import ArrivalMeter
from protocol.receiving.block_assembly import AssembledBlock, BufferPool
from protocol.receiving.control_inbox import ControlInbox
from protocol.receiving.events import (
    BlockAssembled,
    CastEnded,
    Demoted,
    Dropped,
    ManifestReceived,
    ManifestRejected,
    ReceiverEvent,
    Reinstated,
)
from protocol.receiving.group_timing import GroupTiming
from protocol.receiving.manifest_reception import ManifestReception, ManifestStore, MemoryStore
from protocol.receiving.nack_rounds import NackRounds
from protocol.receiving.object_reception import ObjectReception
from protocol.receiving.phases import PHASES, ReceptionPhase, ReceptionTrigger
from protocol.receiving.poisoned_repair import PoisonedRepair
from protocol.receiving.progress_watch import ProgressWatch
from protocol.receiving.receiver_statistics import ReceiverStatistics
from protocol.receiving.report_schedule import ReportSchedule
from protocol.receiving.report_writer import ReportWriter
from protocol.receiving.sender_watch import SenderWatch
from protocol.shared.sequence import FollowedSequence, LossCounter
from protocol.trust.block_cipher import BlockCipher
from protocol.trust.group_keys import derive_group_keys
from protocol.wire.batch import HeaderFilter, header_view
from protocol.wire.bitmap import bitmap_holds
from protocol.wire.control_codec import ControlMessage
from protocol.wire.feedback_codec import FeedbackMessage, encode_feedback
from protocol.wire.messages import (
    Announce,
    BlockDigests,
    CastObject,
    EndOfTransmission,
    Flush,
    Standing,
)


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
        self.demoted = False
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
        self._control = ControlInbox(grant, keys, self.rejects)
        self._group = GroupTiming.at_join(grant, now)
        self._rounds = NackRounds(self._group, self.statistics, rng)
        self._poisoned = PoisonedRepair(self._pool, self._group, self.statistics)
        self._events: list[ReceiverEvent] = []
        self._image: ObjectReception | None = None
        self._manifest: ManifestReception | None = None
        if grant.manifest_by_multicast:
            store = MemoryStore(parameters.manifest_bytes) if manifest_store is None else manifest_store
            self._manifest = ManifestReception(
                parameters, self._pool, store, self.cipher, grant.manifest_hashes
            )
        self._arrival = ArrivalMeter(DATA_HEADER_BYTES + parameters.symbol_bytes)
        self._report_writer = ReportWriter(self._group, self.loss, self._arrival, self.statistics)
        self._counter = 0
        self._sender = SenderWatch(now)
        self._progress = ProgressWatch(grant.next_sequence, now)
        self._reports = ReportSchedule(grant.report_interval_s, rng, now)
        self._dropped = False
        self._phase = ReceptionPhase.AWAITING_MANIFEST

    # -- state for the shell ----------------------------------------------------------------------------------

    @property
    def grtt_s(self) -> float:
        """Return the group's round-trip time."""
        return self._group.grtt_s

    @property
    def foreign_version(self) -> int | None:
        """Return the wire version of another version's program that was heard on the group; None for none."""
        return self._control.foreign_version

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
        self._sender.note_heard(now)
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
        self._reports.watch(self.fill, self._arrival.queue_delay_s, self._group.receiver_count, now)

    def _end_manifest_pass(self, now: float) -> None:
        """End the manifest's pass: image data follows the whole manifest, so its missing symbols need NACKs."""
        assert self._manifest is not None
        self._manifest.end_pass(self._position.next_sequence)
        self._manifest.reception.settle_losses(self._position.next_sequence)
        self._plan_round(now)

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
            self._rounds.cancel()
        self._plan_round(now)

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
        message = self._control.open_untrusted(datagram)
        if self._control.foreign_announcement:
            self._events += self._sender.note_foreign_announcement(now)
        if message is not None:
            self._receive_control(message, now)

    def _receive_control(self, message: ControlMessage, now: float) -> None:
        self._sender.note_heard(now)
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
            self._receive_announcement(message, now)

    def _receive_standing(self, standing: Standing, now: float) -> None:
        receiver_id = self.grant.receiver_id
        demoted = bitmap_holds(standing.demoted, receiver_id)
        if demoted != self.demoted:
            self.demoted = demoted
            self._events.append(Demoted() if demoted else Reinstated())
            self._plan_round(now)
        if bitmap_holds(standing.dropped, receiver_id) and not self._dropped:
            self._dropped = True
            self._events.append(Dropped())

    def _receive_digests(self, message: BlockDigests, now: float) -> None:
        for reception in self._receptions():
            self._poisoned.receive_digests(reception, message, now)
        self._plan_round(now)

    def _receive_announcement(self, announce: Announce, now: float) -> None:
        """Take the state of the group; during a standstill NACKs are repeated less often."""
        self._group.standstill = self._progress.standstill(announce, now)
        self._take_group_state(announce, now)

    def _receive_flush(self, flush: Flush, now: float) -> None:
        self._group.standstill = False
        self._take_group_state(flush, now)
        self._note_sent(flush.next_sequence & 0xFFFFFFFF)
        for reception in self._receptions():
            if reception.object_index <= flush.object:
                reception.flush()
        self._plan_round(now)

    def _note_sent(self, next_sequence: int) -> None:
        """Note that everything before a number was sent."""
        self.loss.advance(next_sequence)
        self._position.advance(next_sequence)

    def _take_group_state(self, message: Announce | Flush, now: float) -> None:
        receptions = self._receptions()
        # A hanging disk may hold all buffers, without which no NACK is sent.
        busy = self.backlog > 0
        self._events += self._progress.note(
            message,
            frames_received_count=self.statistics.frames_received_count,
            useful_count=sum(reception.useful_count for reception in receptions),
            waiting=not busy
            and any(item.waits_for_sender and not self._waits_for_tail(item) for item in receptions),
            now=now,
        )
        self._filter.note_signed(message.next_sequence)
        self._group.take(message, now)
        self._reports.interval_s = message.report_interval_ms / 1e3

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
        self._plan_round(now)

    def block_poisoned(self, assembled: AssembledBlock, now: float) -> None:
        """Note that an image block decodes to wrong bytes, and take its buffer: the sender tells its forged symbols."""
        assert self._image is not None
        self._note_poisoned(self._image, assembled, now)

    def block_fetched(self, block: int, cast_bytes: memoryview) -> None:
        """Take an image block, as cast, that the control API served."""
        assert self._image is not None
        assembled = self._poisoned.take_fetched(self._image, block, cast_bytes)
        if assembled is not None:
            self._events.append(BlockAssembled(assembled))

    def block_unfetchable(self, block: int, now: float) -> None:
        """Note that the control API refuses an image block: NACK all of it again."""
        assert self._image is not None
        self._poisoned.give_up_fetch(self._image, block)
        self._plan_round(now)

    def _note_poisoned(self, reception: ObjectReception, assembled: AssembledBlock, now: float) -> None:
        if self._waits_for_tail(reception):
            self._poisoned.discard(reception, assembled)
        else:
            self._poisoned.note(reception, assembled, now)
        self._plan_round(now)

    # -- sending ----------------------------------------------------------------------------------------------

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """Return the NACKs and REPORTs that are due, for the sender's feedback port."""
        datagrams = []
        self._events += self._sender.silence(now)
        if self._rounds.take_due(now):
            for reception in self._receptions():
                datagrams += [self._encode(request) for request in self._requests(reception, now)]
            self._plan_round(now)
        if self._reports.take_due(now):
            datagrams.append(self.report(now))
        return datagrams

    def next_timer(self) -> float:
        """Return the time of the next call of :meth:`datagrams_to_send`, absolute monotonic seconds."""
        return min(self._reports.due_at, self._sender.silence_due_at, self._rounds.due_at)

    def report(self, now: float) -> bytes:
        """Return a REPORT of the current state."""
        self._reports.note_reported(self.fill, self._arrival.queue_delay_s, now)
        return self._encode(
            self._report_writer.write(
                backlog=self.backlog,
                pool_bytes=self._pool.size_bytes,
                pool_drop_count=self.pool_drop_count,
                needed_count=self.needed_count,
                now=now,
            )
        )

    def _requests(self, reception: ObjectReception, now: float) -> list[FeedbackMessage]:
        """Return the NACKs and the requests for digests of an object; start the fetches of blocks beyond help."""
        nacks = (
            []
            if self._waits_for_tail(reception)
            else self._rounds.nacks(reception, self._position.next_sequence, now)
        )
        fetches = self._poisoned.start_fetches(reception, now)
        if fetches and reception.object_index == CastObject.MANIFEST:
            reception.release_all()
            self._events.append(ManifestRejected())
            self._manifest = None
            return [*nacks]
        self._events += fetches
        return [*nacks, *self._poisoned.requests(reception, now)]

    def _plan_round(self, now: float) -> None:
        if not (self.demoted and self._manifest is None):
            self._rounds.plan(self._receptions(), now)

    def _waits_for_tail(self, reception: ObjectReception) -> bool:
        """Return whether the sender serves this object only in the tail of the cast."""
        return self.demoted and reception.object_index == CastObject.IMAGE

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
