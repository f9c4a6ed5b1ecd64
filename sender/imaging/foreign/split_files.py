"""Files that ``split`` has divided: their order, and one stream of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Final

from protocol.errors import ForeignImageError, SourceError

_LETTERS: Final = 26
_SUFFIX_LENGTHS: Final = (2, 3, 4)


def ordered_pieces(base: str, names: Iterable[str], name: str) -> tuple[str, ...]:
    """Return the file ``base``, or its pieces in order; empty if there is neither.

    Args:
        base: name without the suffix of ``split``, such as ``.aa`` or ``.000``.
        names: names of the directory.
        name: the directory's name for messages.

    Raises:
        ForeignImageError: a piece is missing, or there are two sets of pieces.
    """
    present = set(names)
    sets: list[tuple[str, ...]] = [(base,)] if base in present else []
    for is_number in (False, True):
        for length in _SUFFIX_LENGTHS:
            found = [
                piece
                for piece in present
                if piece.startswith(f"{base}.")
                and _is_suffix(piece[len(base) + 1 :], length, is_number=is_number)
            ]
            first = f"{base}.{_suffix(0, length, is_number=is_number)}"
            if not found or (first not in present and not is_number):  # a word such as "info" isn't a piece
                continue
            pieces = tuple(
                f"{base}.{_suffix(index, length, is_number=is_number)}" for index in range(len(found))
            )
            missing = next((piece for piece in pieces if piece not in present), None)
            if missing is not None:
                raise ForeignImageError(
                    f"{name}: {missing} is missing: the image is incomplete; copy it again"
                )
            sets.append(pieces)
    if len(sets) > 1:
        raise ForeignImageError(
            f"{name}: {sets[0][0]} and {sets[1][0]} are both there: one image has one of them"
        )
    return sets[0] if sets else ()


def _is_suffix(text: str, length: int, *, is_number: bool) -> bool:
    if len(text) != length or not text.isascii():
        return False
    return text.isdecimal() if is_number else text.isalpha() and text.islower()


def _suffix(index: int, length: int, *, is_number: bool) -> str:
    if is_number:
        return f"{index:0{length}d}"
    letters = ""
    for _ in range(length):
        index, digit = divmod(index, _LETTERS)
        letters = chr(ord("a") + digit) + letters
    return letters


class JoinedFiles:
    """Several open files as one stream."""

    def __init__(self, fds: Sequence[int], names: Sequence[str]) -> None:
        """Start at the first byte; the caller closes the descriptors."""
        self._parts = list(zip(fds, names, strict=True))

    def readinto(self, buffer: memoryview, /) -> int:
        """Read some bytes; 0 at the end of the last file.

        Raises:
            SourceError: a file can't be read.
        """
        while self._parts:
            fd, name = self._parts[0]
            try:
                count = os.readv(fd, [buffer])
            except OSError as error:
                raise SourceError(f"{name}: can't read the file: {error.strerror}; check the disk") from error
            if count:
                return count
            self._parts.pop(0)
        return 0
