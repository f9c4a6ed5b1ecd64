"""Benchmark of the wire codec: parsing a batch of headers, and small control messages."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from protocol.constants import NACK_RUNS_MAX
from protocol.trust.group_keys import control_key_of
from protocol.wire.batch import HeaderFilter, block_runs, fill_constant_headers, header_view
from protocol.wire.control_codec import ControlSigner, ControlVerifier
from protocol.wire.data_tags import DataTagger
from protocol.wire.feedback_codec import check_feedback_mac, decode_feedback_untrusted, encode_feedback
from protocol.wire.messages import Announce, CastObject, Nack

CAST_ID = 0x0BADCAFE
SYMBOL_BYTES = 1440
BATCH_SYMBOLS = 704
BATCH_COUNT = 20
BLOCK_SYMBOLS = 183
KEY = bytes(range(32))
TAG_KEY = bytes(range(16))


def _batches() -> list[NDArray[np.uint8]]:
    """Return frames as a sender sends them: blocks in order, symbols of each block in order."""
    tagger = DataTagger(TAG_KEY)
    batches = []
    for number in range(BATCH_COUNT):
        frames = np.zeros((BATCH_SYMBOLS, 32 + SYMBOL_BYTES), np.uint8)
        fill_constant_headers(frames, cast_id=CAST_ID)
        headers = header_view(frames)
        index = np.arange(BATCH_SYMBOLS)
        sequences = number * BATCH_SYMBOLS + index
        headers["sequence"] = sequences
        headers["tag"] = tagger.tags(sequences)
        headers["object"] = CastObject.IMAGE
        headers["block"] = index // BLOCK_SYMBOLS
        headers["k"] = BLOCK_SYMBOLS
        headers["esi"] = index % BLOCK_SYMBOLS
        batches.append(frames)
    return batches


def _parse(batches: list[NDArray[np.uint8]]) -> None:
    rejects: dict[str, int] = {}
    # A new filter for each round, since it accepts each datagram once.
    headers = HeaderFilter(cast_id=CAST_ID, tag_key=TAG_KEY, next_sequence=0)
    for frames in batches:
        assert headers.accept_untrusted(frames, rejects).all()
        for _start, _stop in block_runs(header_view(frames)):
            pass


def _per_second(function: Callable[[], object], items: int) -> float:
    """Return items per second: the median of seven timings of 50 ms."""
    function()
    rates = []
    for _ in range(7):
        calls = 0
        started_s = time.perf_counter()
        while (elapsed_s := time.perf_counter() - started_s) < 0.05:
            function()
            calls += 1
        rates.append(calls * items / elapsed_s)
    return statistics.median(rates)


def run() -> list[dict[str, object]]:
    """Return one row for each component: name, speed, unit."""
    generator = np.random.default_rng(1)
    in_order = _batches()
    with_gaps = [frames[generator.random(BATCH_SYMBOLS) >= 0.05] for frames in in_order]
    shuffled = [generator.permutation(frames) for frames in in_order]
    sequences = np.arange(BATCH_SYMBOLS)
    tagger = DataTagger(TAG_KEY)
    announce = Announce(
        incarnation=1,
        state=1,
        image_id=bytes(32),
        image_name="classroom",
        control_url="http://10.77.0.1:7411",
        symbol_bytes=SYMBOL_BYTES,
        raw_bytes=1 << 34,
        receiver_count=40,
        rate_bytes_per_s=125_000_000,
        next_sequence=1 << 33,
        grtt_us=1_000,
        report_interval_ms=100,
        sent_at_us=1 << 40,
    )
    deficits = tuple((1000 + 3 * row, 1, 1 + row % 20) for row in range(NACK_RUNS_MAX))
    nack = Nack(object=CastObject.IMAGE, sequence=123_456, deficits=deficits)
    signer = ControlSigner(cast_id=CAST_ID, tag_key=KEY, seed=KEY)
    announced = signer.encode(announce)

    def read_announce() -> None:
        verifier = ControlVerifier(
            cast_id=CAST_ID, tag_key=KEY, control_key=control_key_of(KEY), next_counter=1
        )
        verifier.decode_untrusted(announced)

    def write_nack() -> bytes:
        return encode_feedback(nack, cast_id=CAST_ID, receiver_id=7, counter=1, key=KEY)

    nacked = write_nack()

    def read_nack() -> None:
        decode_feedback_untrusted(nacked)
        check_feedback_mac(nacked, KEY)

    batches = (
        ("headers checked and split into runs, batch in order", in_order),
        ("headers checked and split into runs, 5 % of the datagrams missing", with_gaps),
        ("headers checked and split into runs, batch in random order", shuffled),
    )
    rows: list[dict[str, object]] = [
        {
            "component": title,
            "rate": _per_second(functools.partial(_parse, frames), sum(each.shape[0] for each in frames)),
            "unit": "datagrams/s",
        }
        for title, frames in batches
    ]
    rows.append(
        {
            "component": "tags of a batch",
            "rate": _per_second(lambda: tagger.tags(sequences), BATCH_SYMBOLS),
            "unit": "datagrams/s",
        }
    )
    messages: tuple[tuple[str, Callable[[], object]], ...] = (
        ("ANNOUNCE encoded and signed", lambda: signer.encode(announce)),
        ("ANNOUNCE verified and decoded", read_announce),
        ("NACK of 100 rows encoded and tagged", write_nack),
        ("NACK of 100 rows decoded, tag checked", read_nack),
    )
    rows += [
        {"component": title, "rate": _per_second(function, 1), "unit": "messages/s"}
        for title, function in messages
    ]
    return rows
