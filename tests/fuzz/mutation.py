"""Mutations of valid input, drawn from one seed: of bytes, and of the values in JSON and msgpack."""

from __future__ import annotations

import json
import random
from typing import Any, Final

import msgpack

INTERESTING_INTEGERS: Final = (
    *(
        sign * (1 << bits) + delta
        for bits in (7, 8, 15, 16, 31, 32, 53, 63, 64)
        for sign in (1, -1)
        for delta in (-1, 0, 1)
    ),
    0, 1, -1, 10**30,
)  # fmt: skip
INTERESTING_TEXTS: Final = (
    "", " ", "\0", "\x1b]0;x\x07", "\ud800", "\u202e", "é" * 300, "-1", "0", "null", "1e999", "../..", "127.0.0.1",
    "224.0.0.1", "::1%eth0", "[::1]", "https://[", "00:11:22:33:44:55", "0" * 64, "f" * 64, "AAAA", "====", "x" * 5000,
)  # fmt: skip
INTERESTING_SCALARS: Final = (
    None,
    True,
    False,
    0.5,
    -0.0,
    float("inf"),
    float("nan"),
    1e308,
    [],
    {},
    [[]],
    b"",
    b"\xff",
)
INTERESTING_BYTES: Final = (0, 1, 0x7F, 0x80, 0x90, 0x9F, 0xC1, 0xDC, 0xDD, 0xDF, 0xFF)


class Mutator:
    """A source of mutated input; equal seeds give equal input."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, seeds: list[bytes]) -> bytes:
        """Return one of ``seeds``, or two of them joined at random places."""
        pick = self._random
        first = pick.choice(seeds)
        if pick.random() < 0.1:
            second = pick.choice(seeds)
            return first[: pick.randrange(len(first) + 1)] + second[pick.randrange(len(second) + 1) :]
        return first

    def mutate_bytes(self, data: bytes) -> bytes:
        """Change some bytes: flip, overwrite, insert, remove, repeat, truncate."""
        pick = self._random
        out = bytearray(data)
        for _ in range(1 << pick.randrange(4)):
            kind = pick.randrange(8)
            at = pick.randrange(len(out) + 1)
            if kind == 0 and out:
                out[at % len(out)] ^= 1 << pick.randrange(8)
            elif kind == 1 and out:
                out[at % len(out)] = pick.choice(INTERESTING_BYTES)
            elif kind == 2 and out:
                out[at % len(out)] = pick.randrange(256)
            elif kind == 3:
                width = 1 << pick.randrange(4)
                number = pick.choice(INTERESTING_INTEGERS) & ((1 << 8 * width) - 1)
                out[at : at + width] = number.to_bytes(width, pick.choice(("little", "big")))
            elif kind == 4:
                out[at:at] = pick.randbytes(pick.randrange(1, 9))
            elif kind == 5:
                del out[at : at + pick.randrange(1, 9)]
            elif kind == 6 and out:
                start = pick.randrange(len(out))
                out[at:at] = out[start : start + pick.randrange(1, 33)]
            elif kind == 7 and pick.random() < 0.2:
                del out[at:]
        return bytes(out)

    def mutate_value(self, value: Any) -> Any:
        """Replace, remove or repeat one value inside a tree of lists and maps."""
        pick = self._random
        if isinstance(value, dict) and value and pick.random() < 0.9:
            key = pick.choice(list(value))
            changed = dict(value)
            kind = pick.randrange(10)
            if kind == 0:
                del changed[key]
            elif kind == 1:
                changed[pick.choice(INTERESTING_TEXTS)] = changed.pop(key)
            else:
                changed[key] = self.mutate_value(value[key])
            return changed
        if isinstance(value, list | tuple) and value and pick.random() < 0.9:
            items = list(value)
            index = pick.randrange(len(items))
            kind = pick.randrange(10)
            if kind == 0:
                del items[index]
            elif kind == 1:
                items[index:index] = items[index : index + 1] * pick.choice((1, 2, 300))
            else:
                items[index] = self.mutate_value(items[index])
            return items
        return self._mutate_scalar(value)

    def _mutate_scalar(self, value: Any) -> Any:
        pick = self._random
        kind = pick.randrange(6)
        if kind == 0 and isinstance(value, str):
            return self.mutate_bytes(value.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
        if kind == 0 and isinstance(value, bytes):
            return self.mutate_bytes(value)
        if kind == 0 and type(value) is int:
            return value + pick.choice((1, -1, 1 << 32, -(1 << 32)))
        if kind in (0, 1):
            return pick.choice(INTERESTING_INTEGERS)
        if kind == 2:
            return pick.choice(INTERESTING_TEXTS)
        if kind == 3:
            return [value]
        if kind == 4:
            return {"key": value}
        return pick.choice(INTERESTING_SCALARS)

    def mutate_json(self, data: bytes) -> bytes:
        """Mutate the values of a JSON text, mostly; sometimes its bytes."""
        if self._random.random() < 0.2:
            return self.mutate_bytes(data)
        try:
            value = self.mutate_value(json.loads(data))
            return json.dumps(value, ensure_ascii=self._random.random() < 0.5).encode(
                "utf-8", "surrogatepass"
            )
        except (ValueError, TypeError, RecursionError):  # bytes and nested input have no JSON
            return self.mutate_bytes(data)

    def mutate_msgpack(self, data: bytes) -> bytes:
        """Mutate the values of a msgpack body, mostly; sometimes its bytes."""
        if self._random.random() < 0.3:
            return self.mutate_bytes(data)
        try:
            value = self.mutate_value(msgpack.unpackb(data, use_list=True, strict_map_key=False))
            return bytes(msgpack.packb(value, unicode_errors="surrogatepass"))
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
            return self.mutate_bytes(data)

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random.random() < probability
