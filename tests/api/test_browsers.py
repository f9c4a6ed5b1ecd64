"""Protection of a local daemon against pages of other sites in the operator's browser."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import httpx
import pytest

from sender.api.bodies.static_files import WEB_FOLDER, DashboardFiles
from sender.store.records.access import Role
from tests.api.served import Served, serve
from tests.api.test_refusals import check_problem


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7400", "localhost.evil.example", "127.0.0.1.nip.io", ""]
)
def test_dns_rebinding_is_refused(operator: httpx.Client, host: str) -> None:
    check_problem(operator.get("/rooms", headers={"Host": host}), 403)
    check_problem(operator.post("/rooms", json={"name": "x"}, headers={"Host": host}), 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:7400", "127.0.0.1:1", "[::1]:7400", "LOCALHOST"])
def test_all_loopback_names_are_accepted(operator: httpx.Client, host: str) -> None:
    assert operator.get("/rooms", headers={"Host": host}).status_code == 200


def test_the_name_of_a_proxy_can_be_allowed(tmp_path: Path) -> None:
    with serve(tmp_path, server__allowed_hosts=("images.lan",)) as served, served.client() as client:
        assert client.get("/rooms", headers={"Host": "images.lan"}).status_code == 200
        assert client.get("/rooms", headers={"Host": "other.lan"}).status_code == 403
        for host in (
            "images.lan",
            served.url.removeprefix("http://"),
        ):  # as it came, or as the proxy makes it
            made = client.post("/images/scan", headers={"Host": host, "Origin": "https://images.lan"})
            assert made.status_code == 202
            made = client.post(
                "/images/scan", headers={"Host": host, "Origin": "https://images.lan.evil.example"}
            )
            assert made.status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_cross_site_requests_are_rejected(
    operator: httpx.Client, guarded: Served, headers: dict[str, str]
) -> None:
    for method, path in (
        ("POST", "/rooms"),
        ("DELETE", "/rooms/x"),
        ("PATCH", "/rooms/x"),
        ("POST", "/images/scan"),
    ):
        check_problem(operator.request(method, path, headers=headers, json={"name": "x"}), 403)
    with guarded.client(None) as browser:
        browser.post("/session", json={"token": guarded.secrets[Role.OPERATE]}).raise_for_status()
        check_problem(browser.post("/rooms", headers=headers, json={"name": "x"}), 403)


def test_the_dashboards_own_requests_are_accepted(guarded: Served, operator: httpx.Client) -> None:
    headers = {"Origin": guarded.url, "Sec-Fetch-Site": "same-origin"}
    assert operator.post("/images/scan", headers=headers).status_code == 202


def test_other_sites_can_neither_read_nor_frame_responses(guarded: Served, operator: httpx.Client) -> None:
    for url in (f"{guarded.url}/", f"{guarded.url}/api/v1/rooms", f"{guarded.url}/nothing"):
        answer = operator.get(url, headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_dashboard_follows_its_content_security_policy() -> None:
    """Inline scripts and scripts of other sites would silently not run."""
    for page in WEB_FOLDER.rglob("*.html"):
        text = page.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)", text), page
        assert not re.search(r"\son\w+=|<style|\sstyle=", text), page
        assert not re.search(r"""(?:src|href)=["']https?:""", text), page


def test_dashboard_files_have_an_etag_and_are_compressed(guarded: Served, operator: httpx.Client) -> None:
    page = operator.get(f"{guarded.url}/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    again = operator.get(f"{guarded.url}/", headers={"If-None-Match": f'W/{page.headers["etag"]}, "x"'})
    assert (again.status_code, again.content) == (304, b"")
    assert operator.head(f"{guarded.url}/").status_code == 200
    script = operator.get(f"{guarded.url}/assets/app.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    packed = operator.get(f"{guarded.url}/assets/app.js", headers={"Accept-Encoding": "principal"})
    assert packed.content == script.content == (WEB_FOLDER / "app.js").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "..%2fapi%2faccess.py",
        "%2e%2e/api/access.py",
        "..\\api\\access.py",
        "/etc/passwd",
        "",
        "vendor",
        "%00",
    ],
)
def test_no_path_leaves_the_dashboards_folder(guarded: Served, operator: httpx.Client, path: str) -> None:
    check_problem(operator.get(f"{guarded.url}/assets/{path}"), 404)


def test_hidden_and_python_files_are_not_served(tmp_path: Path) -> None:
    for name in (".env", "tool.py", "page.js"):
        (tmp_path / name).write_text("x" * 1000)
    files = DashboardFiles(tmp_path)
    assert set(files._files) == {"page.js"}
    packed = files._files["page.js"].packed
    assert packed is not None
    assert gzip.decompress(packed) == b"x" * 1000
