"""The live system's status as rows of a text console, and the bytes that draw them. Pure: no terminal, no clock.

A page is drawn for 80 columns and 25 rows, centred on a larger console. Only rows that differ from the last ones are
sent, each padded to the full width, and nothing is ever erased, so that the screen doesn't flicker.
"""

from __future__ import annotations

import dataclasses
import enum
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final

from receiver.live.large_letters import BLOCK, large_text

PAGE_COLUMNS: Final = 80
PAGE_ROWS: Final = 25
_MARGIN: Final = "  "
_TEXT_COLUMNS: Final = PAGE_COLUMNS - 2 * len(_MARGIN)
_LABEL_COLUMNS: Final = 12
_BAR_COLUMNS: Final = 66
_NOTES_MAX: Final = 4
_VALUE_ROWS_MAX: Final = 4
"""Rows of one fact: an error message of 250 characters."""
_PARAGRAPH_ROWS_MAX: Final = 4
_RULE: Final = "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * PAGE_COLUMNS
_EMPTY: Final = "\N{LIGHT SHADE}"

_REPLACED: Final = str.maketrans(
    {
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "-",
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{RIGHTWARDS ARROW}": "->",
    }
)


class TextTone(enum.Enum):
    """Meaning of a text, shown by colour, and always by words too."""

    PLAIN = "0"
    QUIET = "0;37"
    STRONG = "0;1"
    GOOD = "0;1;32"
    WARNING = "0;1;33"
    BAD = "0;1;31"
    BUSY = "0;36"


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A piece of a row in one tone; its characters are all in code page 437."""

    text: str
    tone: TextTone = TextTone.PLAIN


Row = tuple[Span, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class StatusPage:
    """Everything that the screen shows.

    Attributes:
        name: name of the machine; empty before it is known.
        address: its network address; empty before it has one.
        heading: the state in a few plain words.
        tone: tone of the heading.
        large: a code or a result in large letters.
        facts: pairs of a label and a text.
        share: progress of the bar from 0 to 1; None for no bar.
        figures: text below the bar.
        following: sentences about what happens next, and what to do.
        notes: the last messages, the latest last.
        footer: versions and addresses for the support.
    """

    name: str = ""
    address: str = ""
    heading: str = ""
    tone: TextTone = TextTone.STRONG
    large: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    share: float | None = None
    figures: str = ""
    following: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    footer: str = ""


def console_text(text: str) -> str:
    """Return ``text`` in printable characters of code page 437, which every console font has.

    Names come from operators and from the network: control characters, which could redraw the screen, are replaced.
    """
    return "".join(map(_console_character, text.translate(_REPLACED)))


def _console_character(character: str) -> str:
    if character.isprintable() and _in_code_page(character):
        return character
    plain = unicodedata.normalize("NFKD", character)[:1]
    return plain if plain.isprintable() and plain.isascii() else "?"


def _in_code_page(character: str) -> bool:
    try:
        character.encode("cp437")
    except UnicodeEncodeError:
        return False
    return True


def draw_page(page: StatusPage, columns: int = PAGE_COLUMNS, rows: int = PAGE_ROWS) -> tuple[Row, ...]:
    """Return ``rows`` rows of at most ``columns`` characters that show ``page``."""
    body = list(_body(page))[: PAGE_ROWS - 1]
    spare = PAGE_ROWS - 1 - len(body)
    notes = page.notes[-min(_NOTES_MAX, spare - 1) :] if spare > 1 else ()
    if notes:
        body += [()] * (spare - 1 - len(notes))
        body.append((Span(_RULE, TextTone.QUIET),))
        body += [(Span(_MARGIN + _cut(note, _TEXT_COLUMNS), TextTone.QUIET),) for note in notes]
    else:
        body += [()] * spare
    body.append((Span(_MARGIN + _cut(page.footer, _TEXT_COLUMNS), TextTone.QUIET),))
    top, left = max(0, rows - PAGE_ROWS) // 2, max(0, columns - PAGE_COLUMNS) // 2
    placed = [()] * top + [(Span(" " * left), *row) if left else row for row in body]
    placed = placed[:rows] + [()] * (rows - len(placed))
    return tuple(_fit(row, columns) for row in placed)


def _body(page: StatusPage) -> Iterator[Row]:
    machine = "   ".join(filter(None, (page.name, page.address)))
    left = _MARGIN + "diskcast"
    right = _cut(machine, PAGE_COLUMNS - len(left) - 2 * len(_MARGIN)) + _MARGIN
    yield (
        Span(left, TextTone.STRONG),
        Span(" " * (PAGE_COLUMNS - len(left) - len(right))),
        Span(right, TextTone.STRONG),
    )
    yield (Span(_RULE, TextTone.QUIET),)
    yield ()
    for line in _wrapped(page.heading, 2):
        yield (Span(_MARGIN + line, page.tone),)
    yield ()
    if page.large:
        for line in large_text(page.large):
            yield (Span(_MARGIN + line, page.tone),)
        yield ()
    for label, value in page.facts:
        indent = _LABEL_COLUMNS
        for index, line in enumerate(_wrapped(value, _VALUE_ROWS_MAX, _TEXT_COLUMNS - indent)):
            title = console_text(label) if index == 0 else ""
            yield (Span(f"{_MARGIN}{title:<{indent}}", TextTone.QUIET), Span(line))
    if page.facts:
        yield ()
    if page.share is not None:
        yield _bar(page.share, page.tone)
    if page.figures:
        yield (Span(_MARGIN + _cut(page.figures, _TEXT_COLUMNS)),)
    if page.share is not None or page.figures:
        yield ()
    for sentence in page.following:
        for line in _wrapped(sentence, _PARAGRAPH_ROWS_MAX):
            yield (Span(_MARGIN + line),)


def _bar(share: float, tone: TextTone) -> Row:
    bounded = min(max(share, 0.0), 1.0)
    filled = int(bounded * _BAR_COLUMNS)
    colour = tone if tone in (TextTone.GOOD, TextTone.BAD) else TextTone.BUSY
    return (
        Span(_MARGIN),
        Span(BLOCK * filled, colour),
        Span(_EMPTY * (_BAR_COLUMNS - filled), TextTone.QUIET),
        Span(f"{int(bounded * 100):>6} %", TextTone.STRONG),
    )


def _wrapped(text: str, rows_max: int, columns: int = _TEXT_COLUMNS) -> list[str]:
    return textwrap.wrap(
        console_text(text), columns, max_lines=rows_max, placeholder=" ...", break_on_hyphens=False
    )


def _cut(text: str, columns: int) -> str:
    shown = console_text(text)
    return shown if len(shown) <= columns else shown[: columns - 3] + "..."


def _fit(row: Row, columns: int) -> Row:
    """Return ``row`` cut or padded to ``columns`` characters."""
    left = columns
    spans: list[Span] = []
    for span in row:
        part = span.text[:left]
        left -= len(part)
        if part:
            spans.append(Span(part, span.tone))
    return (*spans, Span(" " * left)) if left else tuple(spans)


def row_text(row: Row) -> str:
    """Return the characters of a row."""
    return "".join(span.text for span in row)


OPEN_SCREEN: Final = b"\x1b%G\x1b[?25l\x1b[?7l\x1b[9;0]\x1b[14;0]"
"""UTF-8, no cursor, no automatic wrapping; never blanked or powered down (console_codes(4))."""
CLOSE_SCREEN: Final = b"\x1b[0m\x1b[?7h\x1b[?25h"


def update_bytes(rows: Sequence[Row], shown: Sequence[Row]) -> bytes:
    """Return the bytes that change a console from ``shown`` to ``rows``; empty if nothing differs.

    The cursor ends below the text, where a stray message of the kernel disturbs least.
    """
    changed = []
    for index, row in enumerate(rows):
        if index < len(shown) and shown[index] == row:
            continue
        spans = "".join(f"\x1b[{span.tone.value}m{span.text}" for span in row)
        changed.append(f"\x1b[{index + 1};1H{spans}")
    if not changed:
        return b""
    return ("".join(changed) + f"\x1b[0m\x1b[{len(rows)};1H").encode()
