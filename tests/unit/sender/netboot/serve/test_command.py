"""``diskcast netboot serve``: a failure would start a boot service that nobody meant, or none at all."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from protocol.errors import ConfigurationError, InterfaceError
from sender.netboot.serve.boot_service import DhcpMode, pool_of
from sender.netboot.serve.command import MODES, RULES, serve
from sender.store.records.boots import UnknownMachines


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(serve, arguments)


def test_the_help_has_the_modes_of_the_service() -> None:
    assert set(MODES) == {mode.value for mode in DhcpMode}
    assert set(RULES) == {rule.value for rule in UnknownMachines}


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("--kernel-arguments", "a; reboot"), ConfigurationError, "--kernel-arguments"),
        (("--pool", "10.0.0.1-10.0.0.9"), ConfigurationError, "--pool needs --mode dhcp"),
        (("--unknown-machines", "auto"), ConfigurationError, "--unknown-machines needs --room"),
        (("--interface", "no-such-interface"), InterfaceError, "choose another with --interface"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_bound(
    arguments: tuple[str, ...], error: type[Exception], text: str, tmp_path: Path
) -> None:
    result = invoke(str(tmp_path), *arguments)
    assert isinstance(result.exception, error), result.output
    assert text in str(result.exception)


@pytest.mark.parametrize(
    ("address", "first", "last"),
    [
        ("10.0.0.1/24", "10.0.0.128", "10.0.0.254"),
        ("10.0.0.1/16", "10.0.255.0", "10.0.255.254"),
        ("10.0.0.1/30", "10.0.0.2", "10.0.0.2"),
        ("10.0.0.1/29", "10.0.0.4", "10.0.0.6"),
    ],
)
def test_the_default_pool_is_in_the_network(address: str, first: str, last: str) -> None:
    assert pool_of(IPv4Interface(address)) == (IPv4Address(first), IPv4Address(last))
