"""Parsing and formatting of sizes, rates, times and shares."""

from __future__ import annotations

import math
import re

from protocol.errors import ConfigurationError

_BINARY = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)\s*"
_SIZE = re.compile(_NUMBER + r"([KMGT]?)(?:i?B)?", re.IGNORECASE)
_DURATION_S = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_RATE = re.compile(_NUMBER + r"([kKMG]?)(?:bit(?:/s)?|bps)?")
_DURATION = re.compile(_NUMBER + r"(ms|s|min|m|h|d)?")
_SHARE = re.compile(_NUMBER + r"(%?)")


def parse_size_bytes(text: str) -> int:
    """Parse ``256KiB``, ``1M`` or ``4096`` as bytes; K, M, G, T are powers of 1024.

    Raises:
        ConfigurationError: ``text`` isn't a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{text!r} isn't a size: write for example 256KiB, 1M or 65536")
    return int(float(match[1]) * _BINARY[match[2].upper()])


def parse_rate_bytes_per_s(text: str) -> float:
    """Parse ``800M`` (bits per second, decimal, as network rates are) as bytes per second.

    Raises:
        ConfigurationError: ``text`` isn't a rate.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise ConfigurationError(f"{text!r} isn't a rate: write bits per second, for example 800M or 1.5G")
    return float(match[1]) * _DECIMAL[match[2]] / 8


def parse_duration_s(text: str) -> float:
    """Parse ``10s``, ``500ms``, ``2m``, ``1h`` or ``90d`` as seconds; a number alone is seconds.

    Raises:
        ConfigurationError: ``text`` isn't a time.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{text!r} isn't a time: write for example 10s, 500ms or 2m")
    return float(match[1]) * _DURATION_S[match[2] or ""]


def parse_share(text: str) -> float:
    """Parse ``30%`` or ``0.3`` as a number from 0 to 1.

    Raises:
        ConfigurationError: ``text`` isn't a share.
    """
    match = _SHARE.fullmatch(text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match else math.inf
    if share > 1:
        raise ConfigurationError(f"{text!r} isn't a share: write for example 30% or 0.3")
    return share


def format_bytes(count: float) -> str:
    """Format a size as ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def format_rate(bytes_per_s: float) -> str:
    """Format a rate as ``941 Mbit/s``: bits per second, as is usual for networks."""
    bits_per_s = bytes_per_s * 8
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if abs(bits_per_s) < 1000:
            return f"{bits_per_s:.0f} {unit}"
        bits_per_s /= 1000
    return f"{bits_per_s:.2f} Gbit/s"


def format_duration(seconds: float) -> str:
    """Format a duration as ``4.2 s``, ``3:05`` or ``1:02:03``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
