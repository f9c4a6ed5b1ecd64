"""The dashboard's labels, written as a JavaScript module from the tables of sender/labels.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sender import labels
from sender.labels import ChoiceLabel, StateLabel

_HEAD = "/** Labels of states, choices and advice. Generated from sender/labels.py by `make docs`: don't edit. */\n"


def render() -> str:
    """Return the module: one constant per table, keyed by the values that the API returns."""
    tables: dict[str, tuple[str, Any]] = {
        "MACHINE_STATES": (
            "Machine states, those that need attention first.",
            _states(labels.MACHINE_STATES),
        ),
        "CAST_PHASES": ("Phases of a cast.", _states(labels.CAST_PHASES)),
        "PAUSED": ("Shown in place of the phase while a live cast is paused.", _state(labels.PAUSED)),
        "IMAGE_STATES": ("States of an image in the library.", _states(labels.IMAGE_STATES)),
        "IMAGE_ORIGINS": ("Sources of images.", _texts(labels.IMAGE_ORIGINS)),
        "CAPTURE_STATES": ("States of captures.", _states(labels.CAPTURE_STATES)),
        "UPLOAD_STATES": ("States of uploads.", _states(labels.UPLOAD_STATES)),
        "EXPORT_STATES": ("States of exports.", _states(labels.EXPORT_STATES)),
        "GENERALISATIONS": ("States of an image as the source of clones.", _texts(labels.GENERALISATIONS)),
        "KEEP_REASONS": ("Reasons for which pruning keeps an image.", _texts(labels.KEEP_REASONS)),
        "PREFLIGHT_GRADES": ("Grades of the preflight.", _states(labels.PREFLIGHT_GRADES)),
        "ENROLMENT_STATES": ("Enrolment of machines.", _states(labels.ENROLMENT_STATES)),
        "ENROLMENT_MODES": ("Rules for machines that enrol.", _choices(labels.ENROLMENT_MODES)),
        "UNKNOWN_MACHINES": (
            "Rules for unknown machines that boot over the network.",
            _choices(labels.UNKNOWN_MACHINES),
        ),
        "BOOT_ACTIONS": ("Systems that machines boot.", _texts(labels.BOOT_ACTIONS)),
        "ROLES": ("Roles of tokens.", _choices(labels.ROLES)),
        "START_MODES": ("Start conditions of casts.", _choices(labels.START_MODES)),
        "SLOW_POLICIES": ("Policies for stragglers.", _choices(labels.SLOW_POLICIES)),
        "BOTTLENECKS": ("Bottlenecks that a machine reports.", _texts(labels.MACHINE_BOTTLENECKS)),
        "CAST_BOTTLENECKS": (
            "Replacements for bottlenecks of casts that are worded for the command line.",
            _texts(labels.CAST_BOTTLENECKS),
        ),
        "PROBLEM_KINDS": ("Kinds of problems that a daemon reports.", _texts(labels.PROBLEM_KINDS)),
        "STATE_REASONS": ("Reasons for machines that reported no error.", _texts(labels.STATE_REASONS)),
        "STATE_ADVICE": ("The next step by the state of a machine.", _texts(labels.STATE_ADVICE)),
        "EXIT_CODE_ADVICE": ("The next step by the exit code of an agent.", labels.exit_code_advice()),
    }
    kinds = {"PAUSED": "{text: string, tone: string}", "EXIT_CODE_ADVICE": "Record<number, string>"}
    parts = [_HEAD]
    for name, (description, table) in tables.items():
        kind = kinds.get(name) or _kind(table)
        text = _one_entry_a_line(table)
        parts.append(f"/** {description} @type {{{kind}}} */\nexport const {name} = {text};\n")
    return "\n".join(parts)


def _one_entry_a_line(table: Mapping[str, Any]) -> str:
    entries = (
        f"  {json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in table.items()
    )
    return "{\n" + ",\n".join(entries) + "\n}"


def _kind(table: Mapping[Any, Any]) -> str:
    first = next(iter(table.values()))
    if isinstance(first, str):
        return "Record<string, string>"
    return "Record<string, {" + ", ".join(f"{name}: string" for name in first) + "}>"


def _state(label: StateLabel) -> dict[str, str]:
    return {"text": label.text, "tone": label.tone.value}


def _states(table: Mapping[Any, StateLabel]) -> dict[str, dict[str, str]]:
    return {str(key): _state(label) for key, label in table.items()}


def _choices(table: Mapping[Any, ChoiceLabel]) -> dict[str, dict[str, str]]:
    return {str(key): {"text": label.text, "hint": label.hint} for key, label in table.items()}


def _texts(table: Mapping[Any, str]) -> dict[str, str]:
    return {str(key): text for key, text in table.items()}
