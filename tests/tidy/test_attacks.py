"""Attack tests and the threat model belong together."""

from __future__ import annotations

from docs.attack_reference import attack_tests

ATTACK_COUNT = 44
"""Attacks that the design of trust lists, those on machines that boot over the network, on captures, by images and by
machine patches."""


def test_every_attack_has_a_test_that_names_the_loss() -> None:
    """A protection without a test would be lost in some change, and nobody would notice."""
    tests = list(attack_tests())
    assert {number for number, _, _ in tests} == set(range(1, ATTACK_COUNT + 1))
    assert [name for _, name, text in tests if not text] == []
