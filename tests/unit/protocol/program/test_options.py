"""Numbers of options: what Python's parsers take and a person never means is refused."""

from __future__ import annotations

import click
import pytest

from protocol.program.options import Duration, Share, WholeNumber


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "1e3", "1_000", "\uff11", "\u0663", "0x10", "", " ", "--1"]
)
@pytest.mark.parametrize("kind", [WholeNumber(), Duration(), Share()], ids=["whole", "time", "share"])
def test_a_number_is_made_of_ascii_digits(kind: click.ParamType[float], text: str) -> None:
    with pytest.raises(click.BadParameter):
        kind.convert(text, None, None)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("5m", 300.0), ("1.5h", 5400.0), ("500ms", 0.5)])
def test_a_time_has_a_unit_or_is_seconds(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize(("text", "said"), [("0.4", "at least 0.5 s"), ("11m", "at most 10:00")])
def test_a_time_outside_its_limits_is_refused_with_the_limit(text: str, said: str) -> None:
    with pytest.raises(click.BadParameter, match=said):
        Duration(0.5, 600.0).convert(text, None, None)


def test_whole_numbers_and_shares_have_limits() -> None:
    assert WholeNumber(1, 9).convert("9", None, None) == 9
    with pytest.raises(click.BadParameter):
        WholeNumber(1, 9).convert("10", None, None)
    assert Share().convert("5%", None, None) == 0.05
    with pytest.raises(click.BadParameter, match="everything"):
        Share().convert("100%", None, None)
