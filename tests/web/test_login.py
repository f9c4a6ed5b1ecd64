"""Tests of a daemon that requires tokens: login, and the actions that each role permits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.programs.serving import Daemon
from tests.web.browsing import PHONE, Visit, visit


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    settings = {"server": {"require_tokens": True}}
    daemon = Daemon(tmp_path_factory.mktemp("guarded"), settings=settings)
    try:
        daemon.start(ready=False)
        secret = _first_secret(daemon)
        daemon.api.headers["Authorization"] = f"Bearer {secret}"
        daemon.wait_ready()
        yield daemon
    finally:
        daemon.close()


def _first_secret(daemon: Daemon) -> str:
    from tests.support.programs.serving import wait_until

    path = daemon.state_directory / "operator-token"

    def read() -> str:
        return path.read_text().strip() if path.exists() else ""

    return wait_until("the first token is written", read, describe=daemon.describe)


@pytest.fixture
def visitor(browser: Browser, guarded: Daemon) -> Iterator[Visit]:
    with visit(browser, guarded.url) as visiting:
        visiting.allowed.append("401")
        yield visiting


def _token(daemon: Daemon, name: str, role: str) -> tuple[str, str]:
    made = daemon.ask("POST", "/tokens", {"name": name, "role": role})
    return made["token"]["token_id"], made["secret"]


def _log_in(visitor: Visit, secret: str) -> None:
    page = visitor.page
    page.goto(f"{visitor.url}/")
    field = page.get_by_label("Token")
    expect(field).to_be_focused()
    field.fill(secret)
    field.press("Enter")


def test_a_wrong_token_is_refused_and_a_good_one_opens_the_page(visitor: Visit, guarded: Daemon) -> None:
    _log_in(visitor, "dct_view_nonsense")
    page = visitor.page
    expect(page.get_by_label("Token")).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".field-error:visible")).to_have_count(1)
    _, secret = _token(guarded, "anna", "operate")
    page.get_by_label("Token").fill(secret)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("h1")).to_have_text("Overview")
    expect(page.locator(".connection")).to_have_text("Live")
    assert secret not in page.evaluate("document.cookie + JSON.stringify(localStorage) + location.href")
    page.reload()
    expect(page.locator("h1")).to_have_text("Overview")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_focused()


def test_who_may_only_look_is_offered_nothing_else(visitor: Visit, guarded: Daemon) -> None:
    _, secret = _token(guarded, "wall screen", "view")
    _log_in(visitor, secret)
    page = visitor.page
    expect(page.locator("h1")).to_have_text("Overview")
    expect(page.get_by_role("link", name="New cast")).to_have_count(0)
    expect(page.get_by_role("link", name="Tokens")).to_have_count(0)
    visitor.open("/rooms")
    expect(page.get_by_role("button", name="New room")).to_have_count(0)


def test_an_agents_token_opens_nothing(visitor: Visit, guarded: Daemon) -> None:
    visitor.allowed.append("403")
    _, secret = _token(guarded, "agents", "enrol")
    _log_in(visitor, secret)
    expect(visitor.page.locator(".login-card")).to_contain_text("agent")
    expect(visitor.page.get_by_label("Token")).to_be_visible()


def test_a_revoked_token_ends_at_the_login_page(visitor: Visit, guarded: Daemon) -> None:
    token_id, secret = _token(guarded, "short", "operate")
    _log_in(visitor, secret)
    page = visitor.page
    expect(page.locator("h1")).to_have_text("Overview")
    guarded.ask("DELETE", f"/tokens/{token_id}")
    page.get_by_role("link", name="Rooms").first.click()
    expect(page.get_by_label("Token")).to_be_visible()


def test_a_token_is_made_shown_once_and_revoked_on_a_phone(browser: Browser, guarded: Daemon) -> None:
    with visit(browser, guarded.url, PHONE) as visiting:
        visiting.allowed.append("401")
        _, secret = _token(guarded, "phone", "operate")
        _log_in(visiting, secret)
        page = visiting.page
        expect(page.locator("h1")).to_have_text("Overview")
        visiting.open("/tokens")
        page.get_by_role("button", name="New token").click()
        page.get_by_label("Name (required)").fill("grafana")
        page.get_by_role("button", name="Create the token").click()
        shown = page.get_by_label("Secret of the token")
        expect(shown).to_be_focused()
        new_secret = shown.input_value()
        assert new_secret.startswith("dct_view_")
        page.get_by_role("button", name="I have saved it").click()
        row = page.get_by_role("row", name="grafana")
        expect(row).to_be_visible()
        assert new_secret not in page.content()
        row.get_by_role("button", name="Revoke").click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke the token").click()
        expect(page.get_by_role("row", name="grafana")).to_have_count(0)
