"""Login, and the actions that each role permits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.programs.serving import Daemon
from tests.web.browsing import PHONE, Visit, visit


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("guarded")) as daemon:
        yield daemon


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


def test_a_printed_link_logs_in_once(browser: Browser, guarded: Daemon) -> None:
    code = guarded.ask("POST", "/session/codes")["code"]
    link = f"{guarded.url}/#login={code}"
    with visit(browser, guarded.url) as visiting:
        page = visiting.page
        page.goto(link)
        expect(page.locator("h1")).to_have_text("Overview")
        assert code not in page.evaluate("location.href + document.cookie + JSON.stringify(localStorage)")
    with visit(browser, guarded.url) as visiting:
        visiting.allowed.append("401")
        page = visiting.page
        page.goto(link)
        expect(page.locator(".login-card")).to_contain_text("used before")
        expect(page.get_by_label("Token")).to_be_visible()
