"""The network cards of a netbooted machine: if these fail, it asks for an address on a bridge, or on the wrong card."""

from __future__ import annotations

from pathlib import Path

from receiver.live.network_cards import NetworkCard, has_link, in_boot_order, read_cards


def interface(root: Path, name: str, mac: str, *, kind: str = "1", physical: bool = True) -> Path:
    folder = root / "class/net" / name
    folder.mkdir(parents=True)
    (folder / "address").write_text(f"{mac}\n")
    (folder / "type").write_text(f"{kind}\n")
    if physical:
        (folder / "device").mkdir()
    return folder


def test_only_ethernet_cards_count(tmp_path: Path) -> None:
    interface(tmp_path, "eth1", "52:54:00:99:00:02")
    interface(tmp_path, "eth0", "52:54:00:99:00:0A")
    interface(tmp_path, "lo", "00:00:00:00:00:00", kind="772", physical=False)
    interface(tmp_path, "br0", "52:54:00:99:00:03", physical=False)
    interface(tmp_path, "ib0", "80:00:02:08:fe:80", kind="32")
    (interface(tmp_path, "wlan0", "52:54:00:99:00:04") / "wireless").mkdir()
    assert read_cards(tmp_path) == [
        NetworkCard("eth0", "52:54:00:99:00:0a"),
        NetworkCard("eth1", "52:54:00:99:00:02"),
    ]
    assert read_cards(tmp_path / "missing") == []


def test_the_card_of_the_boot_comes_first_and_the_others_keep_their_order() -> None:
    cards = [NetworkCard(f"eth{number}", f"52:54:00:99:00:0{number}") for number in range(4)]
    assert [card.name for card in in_boot_order(cards, "52:54:00:99:00:02")] == [
        "eth2",
        "eth0",
        "eth1",
        "eth3",
    ]
    assert in_boot_order(cards, "") == cards
    assert in_boot_order(cards, "52:54:00:99:00:09") == cards


def test_a_link_is_a_carrier(tmp_path: Path) -> None:
    folder = interface(tmp_path, "eth0", "52:54:00:99:00:01")
    assert not has_link("eth0", tmp_path)
    (folder / "carrier").write_text("1\n")
    assert has_link("eth0", tmp_path)
    (folder / "carrier").write_text("0\n")
    assert not has_link("eth0", tmp_path)
