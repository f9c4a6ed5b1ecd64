"""The live system's screen as rows. Lost if these fail: nobody knows whether a machine may be switched off."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.live.large_letters import LETTER_COLUMNS, LETTER_ROWS, large_text
from receiver.live.status_page import (
    PAGE_COLUMNS,
    PAGE_ROWS,
    StatusPage,
    TextTone,
    console_text,
    draw_page,
    row_text,
    update_bytes,
)

LONG = StatusPage(
    name="n" * 100,
    address="2001:db8::" + "1" * 60,
    heading="heading " * 40,
    tone=TextTone.BAD,
    large="7KX2QM",
    facts=(("Error", "reason " * 100), ("Cause", "x" * 500), ("Fix", "y " * 300)),
    share=0.5,
    figures="figures " * 30,
    following=("next " * 200, "more " * 200),
    notes=tuple(f"note {index} " * 30 for index in range(20)),
    footer="footer " * 50,
)


def texts(page: StatusPage, columns: int = PAGE_COLUMNS, rows: int = PAGE_ROWS) -> list[str]:
    return [row_text(row) for row in draw_page(page, columns, rows)]


@pytest.mark.parametrize(("columns", "rows"), [(80, 25), (80, 24), (100, 37), (40, 10), (240, 67)])
@pytest.mark.parametrize("page", [StatusPage(), LONG], ids=["empty", "too long"])
def test_every_page_fills_the_console_exactly(page: StatusPage, columns: int, rows: int) -> None:
    drawn = texts(page, columns, rows)
    assert len(drawn) == rows
    assert {len(row) for row in drawn} == {columns}


def test_a_larger_console_has_the_page_in_its_middle() -> None:
    drawn = texts(StatusPage(footer="diskcast 1.0"), 100, 45)
    assert drawn[10].startswith(" " * 10 + "  diskcast")
    assert drawn[10 + PAGE_ROWS - 1].startswith(" " * 10 + "  diskcast 1.0")


@given(st.text(max_size=200))
def test_no_text_can_control_the_console(text: str) -> None:
    shown = console_text(text)
    shown.encode("cp437")
    assert shown.isprintable()


def test_typographic_characters_become_plain_ones() -> None:
    assert (
        console_text("“Übungsraum” \N{EN DASH} it\N{RIGHT SINGLE QUOTATION MARK}s Łódź…")
        == '"Übungsraum" - it\'s ?ódz...'
    )


def test_a_code_is_legible_across_a_room() -> None:
    rows = large_text("7KX2QM")
    assert len(rows) == LETTER_ROWS
    assert {len(row) for row in rows} == {6 * LETTER_COLUMNS + 5 * 2}
    assert large_text("e2") == large_text("E2")
    glyphs = {large_text(letter) for letter in string.ascii_uppercase + string.digits}
    assert len(glyphs) == 36, "no two letters look the same"


def test_only_changed_rows_are_drawn_and_nothing_is_erased() -> None:
    before, after = (
        draw_page(StatusPage(heading="Receiving", share=share, figures=f"{share}")) for share in (0.25, 0.26)
    )
    first = update_bytes(before, ())
    assert first.count(b";1H") == PAGE_ROWS + 1
    second = update_bytes(after, before)
    assert 0 < second.count(b";1H") <= 3, "the bar and the figures"
    assert b"\x1b[2J" not in first + second
    assert b"\x1b[K" not in first + second
    assert update_bytes(after, after) == b""
