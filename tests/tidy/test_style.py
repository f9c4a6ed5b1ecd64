"""Each style check finds a seeded violation and accepts its correction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
import pytest

from tests.tidy import style

_CLASS = '"""A module."""\n\n\nclass {name}:\n    """A class."""\n'


@pytest.mark.parametrize(
    ("check", "bad", "good"),
    [
        (style.docstring_openings, '"""What it does."""\n', '"""The rate of a cast."""\n'),
        (
            style.docstring_openings,
            'def f():\n    """Whether it runs."""\n',
            'def f():\n    """Return it."""\n',
        ),
        (style.docstring_openings, 'LIMIT = 3\n"""How many at most."""\n', 'LIMIT = 3\n"""Attempts."""\n'),
        (style.banned_words, "error = 'mend the cable'\n", "error = 'fix the cable'\n"),
        (style.banned_words, "# the daemon goes on\n", "# the daemon continues\n"),
        (style.long_modules, "x = 1\n", '"""A module."""\n'),
        (style.long_modules, '"""A module."""\n' + "x = 1\n" * 700, '"""A module."""\n' + "x = 1\n" * 600),
        (style.global_randomness, "import random\nrandom.random()\n", "import random\nrandom.Random(1)\n"),
    ],
)
def test_a_violation_is_found_and_its_correction_accepted(
    check: Callable[[Iterable[Path]], Iterator[str]], bad: str, good: str, tmp_path: Path
) -> None:
    path = tmp_path / "module.py"
    path.write_text(bad)
    (violation,) = check([path])
    assert violation.startswith(f"{path}:")
    path.write_text(good)
    assert list(check([path])) == []


def test_a_public_class_name_is_used_once(tmp_path: Path) -> None:
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text(_CLASS.format(name="Batch"))
    second.write_text(_CLASS.format(name="Batch"))
    (violation,) = style.repeated_class_names([first, second])
    assert "class Batch is also at" in violation
    second.write_text(_CLASS.format(name="FrameBatch"))
    assert list(style.repeated_class_names([first, second])) == []


def test_a_room_of_the_protocol_is_not_crowded(tmp_path: Path) -> None:
    room = tmp_path / "protocol" / "wire"
    room.mkdir(parents=True)
    for index in range(style.ROOM_MODULES_MAX):
        (room / f"module{index}.py").touch()
    for index in range(style.TOP_MODULES_MAX):
        (room.parent / f"module{index}.py").touch()
    assert list(style.crowded_rooms(room.parent)) == []
    (room / "one_more.py").touch()
    (room.parent / "one_more.py").touch()
    assert len(list(style.crowded_rooms(room.parent))) == 2


@pytest.mark.parametrize("length", [0, style.OPTION_HELP_MAX, style.OPTION_HELP_MAX + 1])
def test_the_help_of_an_option_is_one_line(length: int) -> None:
    @click.command(params=[click.Option(["--rate"], help="x" * length)])
    def send() -> None:
        """Send an image."""

    group = click.Group("diskcast", commands={"send": send}, help="Image a room.")
    found = list(style.long_option_help({"diskcast": group}))
    assert bool(found) == (length != style.OPTION_HELP_MAX)


def test_a_command_has_a_description() -> None:
    group = click.Group("diskcast", commands={"send": click.Command("send")}, help="Image a room.")
    assert list(style.long_option_help({"diskcast": group})) == ["diskcast send: no description"]
