"""Large letters for a text console: codes and results that people read across a room."""

from __future__ import annotations

from typing import Final

LETTER_ROWS: Final = 7
LETTER_COLUMNS: Final = 10
"""Columns of a letter: five dots, each two columns wide, since a console's cells are twice as high as wide."""
GAP_COLUMNS: Final = 2
BLOCK: Final = "\N{FULL BLOCK}"
"""Part of code page 437, and therefore of every console font."""

# Rows of five dots from top to bottom, the leftmost dot first, as on dot-matrix displays.
_DOTS: Final[dict[str, bytes]] = {
    letter: bytes.fromhex(rows)
    for letter, rows in {
        "0": "0e11131519110e", "1": "040c040404040e", "2": "0e11010204081f", "3": "1f02040201110e",
        "4": "02060a121f0202", "5": "1f101e0101110e", "6": "0608101e11110e", "7": "1f010204080808",
        "8": "0e11110e11110e", "9": "0e11110f01020c", "A": "0e11111f111111", "B": "1e11111e11111e",
        "C": "0e11101010110e", "D": "1e11111111111e", "E": "1f10101e10101f", "F": "1f10101e101010",
        "G": "0e11101711110f", "H": "1111111f111111", "I": "0e04040404040e", "J": "0702020202120c",
        "K": "11121418141211", "L": "1010101010101f", "M": "111b1515111111", "N": "11111915131111",
        "O": "0e11111111110e", "P": "1e11111e101010", "Q": "0e11111115120d", "R": "1e11111e141211",
        "S": "0f10100e01011e", "T": "1f040404040404", "U": "1111111111110e", "V": "11111111110a04",
        "W": "1111111515150a", "X": "11110a040a1111", "Y": "1111110a040404", "Z": "1f01020408101f",
    }.items()
}  # fmt: skip


def large_text(text: str) -> tuple[str, ...]:
    """Return ``text`` as :data:`LETTER_ROWS` rows of blocks; other characters than letters and digits are left out."""
    glyphs = [_DOTS[letter] for letter in text.upper() if letter in _DOTS]
    gap = " " * GAP_COLUMNS
    return tuple(gap.join(_dots(glyph[row]) for glyph in glyphs) for row in range(LETTER_ROWS))


def _dots(bits: int) -> str:
    return "".join((BLOCK if bits & 1 << (4 - dot) else " ") * 2 for dot in range(5))
