"""A fuzz target: a decoder of bytes that nobody has authenticated, and the errors that it documents."""

from __future__ import annotations

import dataclasses
import enum
import functools
import time
import zlib
from collections.abc import Callable

from tests.fuzz.mutation import Mutator


class Structure(enum.Enum):
    """The structure that mutations respect most of the time."""

    BYTES = enum.auto()
    JSON = enum.auto()
    MSGPACK_BODY = enum.auto()
    """A fixed prefix, then a msgpack body, then a fixed suffix."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One decoder."""

    name: str
    decode: Callable[[bytes], object]
    """Decodes; any exception but those of ``errors`` is a finding."""
    errors: tuple[type[Exception], ...]
    """The documented errors; empty for a decoder that never raises."""
    seeds: Callable[[], list[bytes]]
    """Makes valid input with our own encoders."""
    structure: Structure = Structure.BYTES
    prefix_bytes: int = 0
    suffix_bytes: int = 0
    repair: Callable[[bytes], bytes] | None = None
    """Makes checksums right again, so that mutations reach the code behind them."""
    share: int = 10
    """Share of executions: less for slow decoders."""

    @functools.cached_property
    def corpus(self) -> list[bytes]:
        """Return the seeds, made once."""
        return self.seeds()

    def mutate(self, mutator: Mutator, data: bytes | None = None) -> bytes:
        """Return one mutated input, of ``data`` or of a seed."""
        data = mutator.choose(self.corpus) if data is None else data
        if self.structure is Structure.JSON:
            data = mutator.mutate_json(data)
        elif self.structure is Structure.MSGPACK_BODY:
            stop = max(self.prefix_bytes, len(data) - self.suffix_bytes)
            prefix, body, suffix = data[: self.prefix_bytes], data[self.prefix_bytes : stop], data[stop:]
            if mutator.chance(0.1):
                prefix = mutator.mutate_bytes(prefix)
            if mutator.chance(0.1):
                suffix = mutator.mutate_bytes(suffix)
            data = prefix + mutator.mutate_msgpack(body) + suffix
        else:
            data = mutator.mutate_bytes(data)
        if self.repair is not None and mutator.chance(0.7):
            data = self.repair(data)
        return data

    def execute(self, data: bytes) -> bool:
        """Decode ``data``; return whether it was accepted.

        Raises:
            FuzzFindingError: an undocumented exception came out.
        """
        try:
            self.decode(data)
        except self.errors:
            return False
        except Exception as error:
            raise FuzzFindingError(self.name, data, error) from error
        return True


class FuzzFindingError(Exception):
    """An undocumented exception, with the input that reproduces it."""

    def __init__(self, name: str, data: bytes, error: Exception) -> None:
        super().__init__(f"{name}: {type(error).__name__}: {error}; bytes.fromhex({data.hex()!r})")
        self.data = data


@dataclasses.dataclass(frozen=True)
class FuzzResult:
    """The figures of one target."""

    name: str
    execution_count: int
    accepted_count: int
    slowest_s: float
    total_s: float


def fuzz(target: Target, execution_count: int, seed: int) -> FuzzResult:
    """Execute ``target`` with mutated seeds; equal arguments give equal input.

    Raises:
        FuzzFindingError: an undocumented exception came out.
    """
    mutator = Mutator(seed ^ zlib.crc32(target.name.encode()))
    accepted_count = 0
    slowest_s = 0.0
    started_s = time.perf_counter()
    for _ in range(execution_count):
        data = target.mutate(mutator)
        before_s = time.perf_counter()
        accepted_count += target.execute(data)
        slowest_s = max(slowest_s, time.perf_counter() - before_s)
    return FuzzResult(
        target.name, execution_count, accepted_count, slowest_s, time.perf_counter() - started_s
    )
