"""Fuzz targets of whole sessions: each input arrives as anyone could send it, then as a hostile member could."""

from __future__ import annotations

import functools
import random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import CONTROL_SIGNATURE_BYTES, DATA_HEADER_BYTES, FEEDBACK_MAC_BYTES, TAG_BYTES
from protocol.model.session_records import JoinGrant
from protocol.receiving import events
from protocol.receiving.receiver_session import ReceiverSession
from protocol.sending.transmission.frame_encoder import FrameEncoder
from protocol.trust.group_keys import derive_group_keys
from protocol.wire import batch, codec
from protocol.wire.data_tags import DataTagger
from protocol.wire.messages import CONTROL_MESSAGES
from sender.cast.session.sender_conflicts import ConflictWatch
from tests.fuzz.samples import sample_message
from tests.fuzz.target import Structure, Target
from tests.fuzz.wire_targets import feedback_seeds, repair_control, repair_feedback
from tests.simulation.world import SYMBOL_BYTES, Scenario, World
from tests.unit.protocol.sending.sender_inputs import join_request

FRAME_BYTES: Final = DATA_HEADER_BYTES + SYMBOL_BYTES
INPUTS_MAX: Final = 500
"""Inputs of one session: then a new one starts, since an authentic message may end it."""


class _Cast:
    """A sender's session that casts, and one receiver's."""

    def __init__(self, *, has_manifest: bool = True) -> None:
        self.inputs_count = 0
        self.now = 100.0
        self.world = World(Scenario(1, block_count=10, encrypted=not has_manifest))
        self.sender = self.world.sender
        self.grant: JoinGrant = self.sender.join(join_request(has_manifest=has_manifest), self.now)
        if not has_manifest:
            self.sender.manifest_demand.want(None)
        self.sender.control_datagrams(self.now)
        self.encoder = FrameEncoder(self.world.parameters)
        plan = self.sender.next_plan(self.now, 20)
        assert plan is not None
        self.frames = self.encoder.encode(plan, self.world.load).copy()
        self.sender.mark_transmitted(plan.next_sequence, self.frames.size, self.now)
        self.receiver = ReceiverSession(
            self.grant, assembly_bytes=4 << 20, rng=random.Random(1), now=self.now
        )
        self.next_sequence = self.grant.next_sequence
        if has_manifest:
            manifest = self.world.image.manifest
            self.receiver.set_manifest(manifest, np.asarray(manifest.stored_mask), self.now)

    def receive_authentic(self, frames: NDArray[np.uint8]) -> None:
        """Receive frames as a hostile member could send them: with the next numbers and their tags."""
        key = derive_group_keys(self.world.parameters, self.grant.run_secret).data_tag
        sequences = self.next_sequence + np.arange(frames.shape[0])
        self.next_sequence += frames.shape[0]
        headers = batch.header_view(frames)
        headers["sequence"] = sequences & 0xFFFFFFFF
        headers["tag"] = DataTagger(key).tags(sequences)
        self.receiver.receive_frames_untrusted(frames, self.now)

    def look_at_sender(self) -> None:
        """Let the session do whatever an input may have caused."""
        self.now += 0.01
        self.sender.control_datagrams(self.now)
        if (plan := self.sender.next_plan(self.now, 8)) is not None:
            self.sender.mark_transmitted(plan.next_sequence, 1, self.now)
        self.sender.next_timer(self.now)
        self.sender.next_events()

    def look_at_receiver(self) -> None:
        """Let the session do whatever an input may have caused."""
        self.now += 0.01
        self.receiver.datagrams_to_send(self.now)
        for event in self.receiver.next_events():
            if isinstance(event, events.BlockAssembled):
                self.receiver.release(event.assembled)


class _Casts:
    """The cast that takes the next input."""

    def __init__(self, *, has_manifest: bool = True, inputs_max: int = INPUTS_MAX) -> None:
        self._cast: _Cast | None = None
        self._has_manifest = has_manifest
        self._inputs_max = inputs_max

    def next(self) -> _Cast:
        """Return a cast that isn't used up."""
        if self._cast is None or self._cast.inputs_count >= self._inputs_max:
            self._cast = _Cast(has_manifest=self._has_manifest)
        self._cast.inputs_count += 1
        return self._cast


_SENDERS, _RECEIVERS, _FRAMES = _Casts(), _Casts(), _Casts()
_MANIFESTS = _Casts(has_manifest=False, inputs_max=1)


def _feed_sender(data: bytes) -> None:
    cast = _SENDERS.next()
    cast.sender.receive_feedback_untrusted(data, cast.now)
    counter = cast.inputs_count.to_bytes(4)
    authentic = data[: codec.PREFIX_BYTES - 4].ljust(codec.PREFIX_BYTES - 4, b"\0") + counter
    authentic += data[codec.PREFIX_BYTES :]
    cast.sender.receive_feedback_untrusted(repair_feedback(authentic, cast.grant.key), cast.now)
    cast.look_at_sender()


def _sender_seeds() -> list[bytes]:
    grant = _Cast().grant
    return feedback_seeds(grant.parameters.cast_id, grant.receiver_id, grant.key, count=8)


def _feed_receiver(data: bytes) -> None:
    cast = _RECEIVERS.next()
    cast.receiver.receive_datagram_untrusted(data, cast.now)
    run = cast.sender._run
    counter = run.signer.next_counter.to_bytes(8)
    run.signer.next_counter += 1
    authentic = data[: codec.PREFIX_BYTES - 8].ljust(codec.PREFIX_BYTES - 8, b"\0") + counter
    authentic += data[codec.PREFIX_BYTES :]
    keys = derive_group_keys(cast.world.parameters, cast.grant.run_secret)
    cast.receiver.receive_datagram_untrusted(
        repair_control(authentic, keys.control_tag, run.signer._private_key.private_bytes_raw()), cast.now
    )
    cast.look_at_receiver()


def _receiver_seeds() -> list[bytes]:
    signer = _Cast().sender._run.signer
    return [
        signer.encode(sample_message(cls, random.Random(number)))  # type: ignore[arg-type]
        for cls in CONTROL_MESSAGES
        for number in range(8)
    ]


def _feed_frames(casts: _Casts, data: bytes) -> None:
    cast = casts.next()
    count = max(1, len(data) // FRAME_BYTES)
    padded = data[: count * FRAME_BYTES].ljust(count * FRAME_BYTES, b"\0")
    frames = np.frombuffer(bytearray(padded), np.uint8).reshape(count, FRAME_BYTES)
    cast.receiver.receive_frames_untrusted(frames, cast.now)
    cast.receive_authentic(frames)
    cast.look_at_receiver()


def _conflicts(data: bytes) -> None:
    watch = ConflictWatch(
        _NO_SOCKET,
        _PARAMETERS,
        is_confirmed=lambda _url, _address: False,
        on_conflict=lambda _error: None,
        on_foreign=lambda _text: None,
    )
    watch.take_untrusted(data, "10.0.0.9", 0.0)


_NO_SOCKET: Any = None
_PARAMETERS: Final = World(Scenario(1, block_count=10)).parameters

TARGETS = (
    Target(
        "sender's session",
        _feed_sender,
        (),
        _sender_seeds,
        Structure.MSGPACK_BODY,
        codec.PREFIX_BYTES,
        FEEDBACK_MAC_BYTES,
        share=3,
    ),
    Target(
        "receiver's session",
        _feed_receiver,
        (),
        _receiver_seeds,
        Structure.MSGPACK_BODY,
        codec.PREFIX_BYTES + TAG_BYTES,
        CONTROL_SIGNATURE_BYTES,
        share=2,
    ),
    Target(
        "receiver's symbols",
        functools.partial(_feed_frames, _FRAMES),
        (),
        lambda: [_Cast().frames[:6].tobytes(), _Cast().frames[:1].tobytes()],
        share=2,
    ),
    Target(
        "encrypted manifest's symbols",
        functools.partial(_feed_frames, _MANIFESTS),
        (),
        lambda: [_Cast(has_manifest=False).frames.tobytes()],
        share=1,
    ),
    Target(
        "watch for other senders",
        _conflicts,
        (),
        _receiver_seeds,
        Structure.MSGPACK_BODY,
        codec.PREFIX_BYTES + TAG_BYTES,
        CONTROL_SIGNATURE_BYTES,
        share=3,
    ),
)
