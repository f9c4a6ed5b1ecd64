"""The commands that an operator pastes on thirty machines must work as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from sender.console.enrolment_text import enrolment_commands, known_signers
from tests.support.signing import SIGNER, STRANGER


def test_the_operators_own_key_and_the_daemons_are_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert known_signers([STRANGER.public.text]) == [STRANGER.public.text, SIGNER.public.text]
    assert known_signers([SIGNER.public.text]) == [SIGNER.public.text]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert known_signers([]) == []


def test_the_commands_name_every_key_and_hide_the_token_from_command_lines() -> None:
    text = enrolment_commands(
        "https://192.0.2.1:7400", "pin", "dct_secret", [SIGNER.public.text, STRANGER.public.text]
    )
    write, run = text.splitlines()
    assert "dct_secret" in write
    assert "dct_secret" not in run
    assert f"--trust-key {SIGNER.public.text} --trust-key {STRANGER.public.text}" in run
    assert "--trust-key" not in enrolment_commands("https://192.0.2.1:7400", "pin", "dct_secret", [])
