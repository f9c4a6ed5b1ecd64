"""Enrolment in the dashboard, with real agents: approval by a code, a second claimant, revocation, a new token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.network.lab import LIMIT_S, Program, diskcast_agent
from tests.support.programs.serving import Daemon, ServiceAgent, wait_until
from tests.web.browsing import visit


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(
        tmp_path_factory.mktemp("enrolment"), settings={"server": {"enrolment": "approve"}}
    ) as started:
        started.ask("POST", "/rooms", {"name": "Lab 1", "room_id": "lab-1"})
        yield started


def code_of(agent: ServiceAgent) -> str:
    """Return the code that the agent shows."""

    def shown() -> str:
        assert agent.program is not None
        codes = [event["code"] for event in agent.program.events if event["event"] == "awaiting_approval"]
        return codes[-1] if codes else ""

    return wait_until(f"{agent.name} shows its code", shown, describe=agent.describe)


def test_a_machine_is_approved_with_one_click_beside_its_code(
    browser: Browser, daemon: Daemon, tmp_path: Path
) -> None:
    with ServiceAgent(tmp_path, "pc01", [daemon]) as agent, visit(browser, daemon) as visiting:
        code = code_of(agent)
        page = visiting.open("/machines")
        row = page.get_by_role("region", name="Machines that wait for approval").get_by_role(
            "row", name="pc01"
        )
        expect(row.locator(".approval-code")).to_have_text(code)
        row.get_by_role("button", name=f"Approve pc01 with code {code}").click()
        assert agent.program is not None
        wait_until(
            "the agent waits for a cast",
            lambda: any(event["event"] == "waiting" for event in agent.program.events),  # type: ignore[union-attr]
            describe=agent.describe,
        )
        page = visiting.open("/machines")
        expect(page.get_by_role("region", name="Machines that wait")).to_have_count(0)
        expect(page.get_by_role("row", name="pc01")).to_contain_text("Enrolled")
        page.get_by_role("link", name="pc01").click()
        panel = page.get_by_role("region", name="Enrolment")
        expect(panel).to_contain_text(f"approved by {daemon.name} operate")

        panel.get_by_role("button", name="Revoke").click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(page.get_by_role("region", name="Enrolment")).to_contain_text("Revoked")
        assert agent.program.wait(LIMIT_S) == 94, agent.describe()
        page.get_by_role("region", name="Enrolment").get_by_role("button", name="Readmit").click()
        expect(page.get_by_role("region", name="Enrolment")).to_contain_text("Not enrolled")


def test_a_second_claimant_is_shown_as_a_problem_and_at_its_machine(
    browser: Browser, daemon: Daemon, tmp_path: Path
) -> None:
    daemon.ask("PATCH", "/rooms/lab-1", {"enrolment": "token"})
    machine = daemon.ask("POST", "/machines", {"name": "pc02", "room_id": "lab-1", "serial": "SN-pc02"})
    with ServiceAgent(tmp_path, "pc02", [daemon]) as holder, visit(browser, daemon) as visiting:
        wait_until(
            "the machine is enrolled",
            lambda: daemon.ask("GET", f"/machines/{machine['machine_id']}")["enrolment"] == "enrolled",
            describe=holder.describe,
        )
        argv = ["run", "--server", daemon.url, "--interface", "lo", "--identity", "SN-pc02", "--json"]
        token = {"DISKCAST_TOKEN": daemon.secret("enrol")}
        with Program(diskcast_agent(*argv, "--target", tmp_path / "other.disk"), environment=token):
            page = visiting.open("/")
            expect(page.locator(".problems")).to_contain_text("claims to be pc02")
            visiting.open(f"/machines/{machine['machine_id']}")
            alert = page.get_by_role("region", name="Enrolment").locator(".alert")
            expect(alert).to_contain_text("Another agent claims to be this machine")


def test_a_token_for_a_room_comes_with_the_commands_to_paste(browser: Browser, daemon: Daemon) -> None:
    with visit(browser, daemon) as visiting:
        page = visiting.open("/rooms/lab-1")
        page.get_by_role("button", name="Add machines").click()
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_label("Room")).to_have_value("lab-1")
        dialog.get_by_role("button", name="Create the token").click()
        commands = dialog.locator("pre")
        expect(commands).to_contain_text("dct_enrol_")
        expect(commands).to_contain_text(f"--server {daemon.url}")
        assert "dct_enrol_" not in (commands.inner_text().splitlines()[1]), "not on a command line"
        dialog.get_by_role("button", name="Done").click()
        [token] = [item for item in daemon.ask("GET", "/tokens")["items"] if item["room_id"] == "lab-1"]
        assert token["role"] == "enrol"
        assert token["expires_at"] is not None
