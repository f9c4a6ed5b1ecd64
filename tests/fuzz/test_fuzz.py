"""A seeded slice of the fuzzing; ``make fuzz`` runs ten million executions.

An undocumented exception in one of these decoders means that one packet, or one file, ends a room's cast.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.fuzz.mutation import Mutator
from tests.fuzz.target import FuzzFindingError, Structure, Target, fuzz
from tests.fuzz.targets import TARGETS, split

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "receiver", "sender")
SLICE = 60_000
"""Executions over all targets: some seconds."""


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_mutated_input_raises_documented_errors_only(target: Target) -> None:
    result = fuzz(target, split(SLICE)[target.name], seed=20)
    assert result.execution_count == split(SLICE)[target.name]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_seeds_are_accepted_and_some_mutations_are_not(target: Target) -> None:
    """A seed that the decoder refuses would let the fuzzing end at the first check."""
    assert all(target.execute(seed) for seed in target.corpus)
    if target.errors:
        mutator = Mutator(1)
        assert not all(target.execute(target.mutate(mutator)) for _ in range(500))


def test_every_untrusted_function_is_reached_by_a_seed() -> None:
    """A new decoder of bytes from the network needs a target, or belongs to the reach of one."""
    reached: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            reached.add((frame.f_code.co_filename, frame.f_code.co_qualname.replace(".<locals>", "")))

    corpora = [(target, target.corpus) for target in TARGETS]
    usual = sys.getprofile()
    sys.setprofile(note)
    try:
        for target, corpus in corpora:
            for seed in corpus:
                target.execute(seed)
    finally:
        sys.setprofile(usual)
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, name in untrusted_functions()
        if (str(path), name) not in reached
    ]
    assert not missing, "add a fuzz target, or seeds that reach these:\n" + "\n".join(missing)


def untrusted_functions() -> Iterator[tuple[Path, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in _qualified_names(ast.parse(path.read_text()), ""):
                if name.rpartition(".")[2].endswith("_untrusted") or ".decode_untrusted" in name:
                    yield path, name


def _qualified_names(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in child.bases):
            continue  # a shape without code
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not isinstance(child, ast.ClassDef):
                yield prefix + child.name
            yield from _qualified_names(child, f"{prefix}{child.name}.")


# -- the harness itself -----------------------------------------------------------------------------------------


def _target(decode: Callable[[bytes], object], structure: Structure = Structure.BYTES) -> Target:
    return Target("planted", decode, (ValueError,), lambda: [b'{"key": [1, 2], "text": "x"}'], structure)


def test_a_planted_fault_is_found_and_reproduced() -> None:
    def decode(data: bytes) -> object:
        if data[:1] == b"\xff":
            raise KeyError("planted")
        return data

    with pytest.raises(FuzzFindingError, match=r"planted: KeyError: 'planted'; bytes\.fromhex") as caught:
        fuzz(_target(decode), 20_000, seed=1)
    with pytest.raises(KeyError):
        decode(caught.value.data)


def test_documented_errors_are_no_findings() -> None:
    def refuse(_data: bytes) -> object:
        raise ValueError

    assert fuzz(_target(refuse), 100, seed=1).accepted_count == 0


def test_equal_seeds_give_equal_runs() -> None:
    runs = []
    for _ in range(2):
        inputs: list[bytes] = []
        fuzz(_target(inputs.append, Structure.JSON), 500, seed=3)
        runs.append(inputs)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 200
