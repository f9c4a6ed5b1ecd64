"""Benchmark of the wire codec: parsing a batch of headers, and small control messages."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from protocol.constants import NACK_BLOCKS_PER_DATAGRAM_MAX
from protocol.wire.batch import HeaderFilter, block_runs, fill_constant_headers, header_view
from protocol.wire.codec import (
    check_feedback_mac,
    decode_control_untrusted,
    decode_feedback_untrusted,
    encode_control,
    encode_feedback,
)
from protocol.wire.messages import Announce, CastObject, Nack

CAST_ID = 0x0BADCAFE
SESSION_TOKEN = 0x0123456789ABCDEF
SYMBOL_BYTES = 1440
BATCH_SYMBOLS = 704
BLOCK_SYMBOLS = 183
KEY = bytes(range(32))


def _batch() -> NDArray[np.uint8]:
    """Return frames as a sender sends them: blocks in order, symbols of each block in order."""
    frames = np.zeros((BATCH_SYMBOLS, 32 + SYMBOL_BYTES), np.uint8)
    fill_constant_headers(frames, cast_id=CAST_ID, session_token=SESSION_TOKEN)
    headers = header_view(frames)
    index = np.arange(BATCH_SYMBOLS)
    headers["sequence"] = index
    headers["object"] = CastObject.IMAGE
    headers["block"] = index // BLOCK_SYMBOLS
    headers["k"] = BLOCK_SYMBOLS
    headers["esi"] = index % BLOCK_SYMBOLS
    return frames


def _parse(frames: NDArray[np.uint8]) -> None:
    rejects: dict[str, int] = {}
    accepted = HeaderFilter(cast_id=CAST_ID, session_token=SESSION_TOKEN).accept_untrusted(frames, rejects)
    assert accepted.all()
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
    in_order = _batch()
    with_gaps = in_order[np.random.default_rng(1).random(BATCH_SYMBOLS) >= 0.05]
    shuffled = np.random.default_rng(1).permutation(in_order)
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
        grtt_us=1_000,
        report_interval_ms=100,
        sent_at_us=1 << 40,
    )
    deficits = tuple((1000 + 3 * row, 1, 1 + row % 20) for row in range(NACK_BLOCKS_PER_DATAGRAM_MAX))
    nack = Nack(receiver_id=7, counter=1, object=CastObject.IMAGE, sequence=123_456, deficits=deficits)
    announced = encode_control(announce, cast_id=CAST_ID, session_token=0)
    nacked = encode_feedback(nack, cast_id=CAST_ID, session_token=SESSION_TOKEN, key=KEY)

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
            "rate": _per_second(functools.partial(_parse, frames), frames.shape[0]),
            "unit": "datagrams/s",
        }
        for title, frames in batches
    ]
    messages: tuple[tuple[str, Callable[[], object]], ...] = (
        ("ANNOUNCE encoded", lambda: encode_control(announce, cast_id=CAST_ID, session_token=0)),
        ("ANNOUNCE decoded and checked", lambda: decode_control_untrusted(announced)),
        (
            "NACK of 100 rows encoded and tagged",
            lambda: encode_feedback(nack, cast_id=CAST_ID, session_token=SESSION_TOKEN, key=KEY),
        ),
        ("NACK of 100 rows decoded, tag checked", read_nack),
    )
    rows += [
        {"component": title, "rate": _per_second(function, 1), "unit": "messages/s"}
        for title, function in messages
    ]
    return rows
