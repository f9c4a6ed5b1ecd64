"""The one-line messages: if these fail, the scripts print lines that the documentation doesn't explain."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import receiver.live
from receiver.live.messages import MESSAGES, NO_DAEMON, NO_LINK, TEXT_CHARS_MAX

FILES = Path(receiver.live.__file__).parent / "files"
SCRIPTS = [
    FILES / "initrd/init",
    FILES / "initrd/checks.sh",
    FILES / "root/init",
    FILES / "root/usr/lib/diskcast/ending.sh",
]
PROGRESS = ("checking the live system", "nothing was written; restart", "${state:-", "$1")
"""Lines that are no reason for anything."""


def script_messages() -> list[str]:
    found = []
    for script in SCRIPTS:
        for line in script.read_text().splitlines():
            match = re.search(r'(?:reason=|\bstop |\bsay )"(.*)"', line)
            if match and match[1] != "$reason" and not match[1].startswith(PROGRESS):
                found.append(match[1])
    return found


def test_each_message_of_a_script_is_in_the_table() -> None:
    texts = script_messages()
    assert len(texts) >= 9
    texts = [text.replace("$1", "1") for text in texts]
    for text in texts:
        assert any(message.matches(text) for message in MESSAGES if not message.template.startswith("{")), (
            text
        )


def test_facts_cant_control_a_terminal() -> None:
    text = NO_DAEMON.text(reason="https://10.0.0.1:7400: \x1b[2Jhello\nworld\x9b")
    assert text == "no daemon at https://10.0.0.1:7400: ?[2Jhello?world?"
    assert len(NO_DAEMON.text(reason="x" * 5000)) == TEXT_CHARS_MAX


def test_a_message_recognises_its_own_lines_only() -> None:
    assert NO_LINK.matches(NO_LINK.text(cards="eth0, eth1"))
    assert not NO_LINK.matches("no DHCP on eth0")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.template)
def test_each_message_has_a_cause_and_a_fix_in_sentences(message: object) -> None:
    assert message.cause.endswith(".")  # type: ignore[attr-defined]
    assert message.fix.endswith(".")  # type: ignore[attr-defined]
