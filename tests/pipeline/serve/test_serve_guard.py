"""Which requests `pipeline serve` accepts, and what its answers allow a browser."""

import re
from collections.abc import Iterator

import httpx
import pytest

from tests.support.serving import Serving, post, served
from tests.support.videos import write_mouth


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with served(tmp_path_factory.mktemp("cache")) as server:
        yield server


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_mouth(tmp_path_factory.mktemp("videos") / "me.mp4", 25).read_bytes()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "localhost.evil"])
def test_another_host_name_is_refused(server: Serving, host: str) -> None:
    """Otherwise a site could point its name at this machine and read the answers (DNS rebinding)."""
    for address in ("/", "/api/health"):
        answer = httpx.get(server.url + address, headers={"Host": host})
        assert (answer.status_code, answer.json()["reason"]) == (421, "wrong_host")


def test_its_own_names_are_accepted(server: Serving) -> None:
    for host in (f"127.0.0.1:{server.port}", f"LOCALHOST:{server.port}", "[::1]:1"):
        assert httpx.get(f"{server.url}/api/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 200),
    ],
)
def test_pages_of_other_sites_are_refused(
    server: Serving, video: bytes, headers: dict[str, str], status: int
) -> None:
    answer = post(server, video, headers=headers)
    assert answer.status_code == status
    assert answer.headers["X-Frame-Options"] == "DENY"
    own = {"Origin": server.url}
    assert status == 403 or post(server, video, headers=own).status_code == 200


@pytest.mark.parametrize(
    "address",
    ["/", "/page.js", "/camera.js", "/page.css", "/base.css", "/icon.svg", "/api/health", "/nothing"],
)
def test_every_answer_forbids_what_the_page_does_not_need(server: Serving, address: str) -> None:
    answer = httpx.get(server.url + address)
    assert answer.status_code == (404 if address == "/nothing" else 200)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy) and "http" not in str(policy)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "server" not in answer.headers
    # nothing is loaded from other servers
    assert not re.findall(r"https?:|@import|src=\W*//", answer.text.replace("http://www.w3.org/2000/svg", ""))
