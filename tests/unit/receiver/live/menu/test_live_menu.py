"""The menu's settings in the live system: a daemon only with a network, and the trust of this boot."""

from __future__ import annotations

import pytest

from protocol.control.boot_parameters import AfterCast, BootParameters
from receiver.live.menu.live_menu import final_action, menu_settings
from receiver.live.menu.menu import MenuEnd
from receiver.live.network_setup import Lease

LEASE = Lease("eth0", "10.0.0.7/24", "10.0.0.1", "pc07", "52:54:00:00:00:07")
PARAMETERS = BootParameters(
    servers=("https://10.0.0.1:7400",),
    image_url="https://10.0.0.1/lab.dci",
    after=AfterCast.POWEROFF,
    version_min=7,
    tags=frozenset({"lab"}),
    grow=True,
)


def test_the_settings_of_a_boot_reach_the_menu() -> None:
    """A floor or a tag that got lost would let an old or foreign image onto the disk."""
    settings = menu_settings(PARAMETERS, LEASE, "pc07", "dcb_0123456789abcdef")
    assert settings.service is not None
    assert (settings.service.machine.interface, settings.service.token) == ("eth0", "dcb_0123456789abcdef")
    assert settings.service.target == "", "the technician chooses the disk"
    for trust in (settings.trust, settings.service.trust):
        assert (trust.version_min, trust.tags, trust.allow_unsigned) == (7, frozenset({"lab"}), False)
    assert settings.target_options.fit.grow
    assert (settings.after, settings.image_url, settings.live) == (
        AfterCast.POWEROFF,
        "https://10.0.0.1/lab.dci",
        True,
    )
    assert "dcb_" not in repr(settings), "a token in a log"


def test_without_a_network_or_a_daemon_only_files_are_offered() -> None:
    assert menu_settings(PARAMETERS, None, "pc07", "").service is None
    assert menu_settings(BootParameters(), LEASE, "pc07", "").service is None


@pytest.mark.parametrize(
    ("end", "after", "action"),
    [
        (MenuEnd.IMAGED, AfterCast.REBOOT, AfterCast.REBOOT),
        (MenuEnd.IMAGED, AfterCast.POWEROFF, AfterCast.POWEROFF),
        (MenuEnd.RESTART, AfterCast.POWEROFF, AfterCast.REBOOT),
        (MenuEnd.POWER_OFF, AfterCast.REBOOT, AfterCast.POWEROFF),
    ],
)
def test_the_technicians_choice_comes_before_the_configured_action(
    end: MenuEnd, after: AfterCast, action: AfterCast
) -> None:
    assert final_action(end, after) is action
