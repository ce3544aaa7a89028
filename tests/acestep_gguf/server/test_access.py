"""Who is let in: the middleware before an app that says what came through."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from acestep_gguf.errors import UsageError
from acestep_gguf.options import EngineOptions
from acestep_gguf.server.access import Access
from acestep_gguf.server.app import make_app
from acestep_gguf.server.loaded_models import Models
from acestep_gguf.server.settings import ServerSettings
from tests.support import event_loop
from tests.support.command_line import acestep, check_is_one_line
from tests.support.live_server import KEY, LiveServer, about, data_url, live_server, refusal


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"{len(body)} bytes")(scope, receive, send)


def client(host: str = "localhost", **settings: Any) -> TestClient:
    app = Access(echo, ServerSettings(port=8080, **settings))
    return TestClient(app, base_url=f"http://{host}", raise_server_exceptions=False)


@pytest.mark.parametrize(
    "host", ["localhost:8080", "localhost", "127.0.0.1:8080", "[::1]:8080", "192.168.1.7", "LOCALHOST"]
)
def test_addresses_and_localhost_are_names_of_a_server(host: str) -> None:
    assert client().get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("", "localhost:8080@evil.example", "127.0.0.1 evil.example", "1271.0.0.1", "localhost:x", "[evil]"),
    ],
)
def test_a_name_that_was_bound_to_this_machine_is_refused(host: str) -> None:
    refusal(client().get("/v1/models", headers={"Host": host}), 403, "--allowed-host")
    refusal(client().get("/", headers={"Host": host}), 403)


def test_allowed_hosts() -> None:
    allowed = client(allowed_hosts=("Pictures.example",))
    assert allowed.get("/v1/models", headers={"Host": "pictures.example:443"}).status_code == 200
    assert allowed.get("/v1/models", headers={"Host": "pictures.example."}).status_code == 200
    refusal(allowed.get("/v1/models", headers={"Host": "other.example"}), 403)


@pytest.mark.parametrize("origin", ["http://localhost:8080", "https://localhost:8080"])
def test_the_own_page_may_ask(origin: str) -> None:
    response = client("localhost:8080").post("/v1/chat/completions", headers={"Origin": origin})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:9090", "http://localhost", "localhost:8080", ""],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_others_may_not(origin: str, method: str) -> None:
    response = client("localhost:8080").request(method, "/v1/models", headers={"Origin": origin})
    refusal(response, 403, "--allowed-origin")
    assert "access-control-allow-origin" not in response.headers


def test_allowed_origins_may_ask_and_read() -> None:
    origin = {"Origin": "https://page.example"}
    allowed = client(allowed_origins=("https://page.example",), api_keys=(KEY,))
    preflight = allowed.options("/v1/chat/completions", headers=origin)
    assert preflight.status_code == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    for response in (preflight, allowed.get("/v1/models", headers=origin)):  # so that it can read a refusal
        assert response.headers["access-control-allow-origin"] == "https://page.example"
        assert response.headers["vary"] == "Origin"


def test_keys() -> None:
    keyed = client(api_keys=(KEY, "another"))
    for key in (KEY, "another"):
        assert keyed.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    for wrong in ("Bearer", "Bearer x", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xff", ""):
        headers = {b"Authorization": wrong.encode("latin-1")}
        error = refusal(keyed.get("/v1/models", headers=headers), 401)
        assert error["code"] == "invalid_api_key"
    refusal(keyed.post("/v1/chat/completions"), 401)


def test_all_that_a_server_has_needs_the_key_but_its_page_and_health(tiny_bundle: Path) -> None:
    settings = ServerSettings(api_keys=(KEY,))
    app = make_app(Models([tiny_bundle], EngineOptions(), settings), settings)
    with_key = TestClient(app, base_url="http://localhost")
    paths = {getattr(route, "path", "") for route in app.routes} - {"", "/health"}
    assert {"/metrics", "/openapi.json", "/v1/models", "/v1/responses"} <= paths
    for path in paths:
        for method in ("GET", "POST"):
            refusal(with_key.request(method, path), 401)
    assert with_key.get("/health").json() == {"status": "ok"}
    page = with_key.get("/")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]


def test_bodies_are_limited_as_they_come() -> None:
    small = client(max_body=2000)
    assert small.post("/", content=b"x" * 2000).text == "2000 bytes"
    refusal(small.post("/", content=b"x" * 2001), 413, "2000 bytes")

    def parts() -> Iterator[bytes]:  # nothing says how many there will be
        for _ in range(5):
            yield b"x" * 500

    response = small.post("/", content=parts())
    assert response.status_code == 413


@pytest.mark.parametrize("seconds_a_part", [60, 0.001])
def test_a_body_that_takes_too_long_is_refused_however_it_comes(seconds_a_part: float) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(seconds_a_part)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    access = Access(echo, ServerSettings(body_within_s=0.05))
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    event_loop.run(asyncio.wait_for(access(scope, receive, send), 30))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 30, "0x10"])
def test_a_length_that_is_none_is_not_believed(length: str) -> None:
    assert (
        client(max_body=2000).post("/", content=b"ab", headers={"Content-Length": length}).status_code < 500
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.org"])
def test_other_addresses_need_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="insecure=True"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, api_keys=(KEY,)).host == host
    assert ServerSettings(host=host, insecure=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_the_own_machine_needs_none(host: str) -> None:
    assert ServerSettings(host=host).keys == ()


@pytest.mark.slow
def test_the_verb_refuses_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    check_is_one_line(acestep("serve", tiny_bundle, "--host", "0.0.0.0"), "--insecure")
    check_is_one_line(acestep("serve", tiny_bundle, "--api-key-file", tmp_path / "none"), "cannot be read")
    check_is_one_line(acestep("serve", tiny_bundle, "--host", "203.0.113.1", "--insecure"), "listened on")
    check_is_one_line(acestep("serve", tiny_bundle, "--ssl-cert-file", tmp_path / "x"), "--ssl-key-file")
    for option in ("--max-tokens", "--timeout", "--drain", "--max-body", "--max-images", "--queue"):
        check_is_one_line(acestep("serve", tiny_bundle, option, "-1"), f"error: {option} is ")
    for option in ("--host", "--allowed-host"):
        check_is_one_line(acestep("serve", tiny_bundle, option, ""), f"error: {option} is empty")
    assert "the path is empty" in acestep("serve", tiny_bundle, "--allow-path", "").stderr
    check_is_one_line(acestep("serve", tmp_path), "not a bundle")
    check_is_one_line(acestep("serve"), "no bundle to serve")
    check_is_one_line(acestep("serve", tiny_bundle, "--spec-type", "ngram-simple"), "leave out --draft")
    check_is_one_line(acestep("serve", tiny_bundle, "--exact", "--parallel", "2"), "choose one")


@pytest.fixture(scope="module")
def guarded(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, Path]]:
    """A server with a key in a file, and a folder of which pictures may be read."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(f"{KEY}\n\nanother\n")
    (folder / "pictures").mkdir()
    arguments = ("--api-key-file", folder / "keys", "--allow-path", folder / "pictures", "--max-body", "2MiB")
    limits = ("--max-images", "2", "--max-pixels", "100000", "-q", "F32", "-c", "256", "--no-cache")
    with live_server(tiny_bundle, *arguments, *limits) as live:
        yield live, folder


def ask(server: LiveServer, *urls: Any, key: str = KEY) -> httpx.Response:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]
    body = {"messages": messages, "max_tokens": 2}
    return server.post("/v1/chat/completions", body, Authorization=f"Bearer {key}")


def test_a_server_with_keys(guarded: tuple[LiveServer, Path], picture: Path) -> None:
    server, _ = guarded
    assert ask(server, data_url(picture)).status_code == 200
    assert ask(server, data_url(picture), key="another").status_code == 200
    refusal(ask(server, data_url(picture), key="wrong"), 401)
    assert httpx.get(f"{server.url}/health").status_code == 200
    refusal(httpx.get(f"{server.url}/v1/models"), 401)
    refusal(httpx.get(f"{server.url}/v1/models", headers={"Host": "evil.example"}), 403)


def test_pictures_come_from_the_allowed_folder_only(
    guarded: tuple[LiveServer, Path], picture: Path, tmp_path: Path
) -> None:
    server, folder = guarded
    inside = folder / "pictures" / "with space.png"
    inside.write_bytes(picture.read_bytes())
    (folder / "pictures" / "link.png").symlink_to(picture)
    (folder / "pictures" / "within.png").symlink_to(inside)
    for url in (
        inside.as_uri(),
        f"file://localhost{inside.as_uri()[7:]}",
        (inside.parent / "within.png").as_uri(),
    ):
        assert ask(server, url).status_code == 200, url
    for refused in (
        picture.as_uri(),
        (inside.parent / "link.png").as_uri(),
        f"file://{inside.parent}/../keys",
        f"file://{inside.parent}/%2e%2e/keys",
        f"file://{inside.parent}",
        "file:///etc/passwd",
        "file:///dev/zero",
        "file://evil.example/x.png",
        f"file://{inside}%00.png",
        "file:",
    ):
        error = refusal(ask(server, refused), 400)
        assert error["message"] == "this file is not in the allowed folder.", refused


@pytest.mark.parametrize(
    "url",
    [
        *("http://169.254.169.254/latest/meta-data", "https://example.org/x.png", "ftp://example.org/x.png"),
        *("/etc/passwd", "picture.png", "", "gopher://x", "data", "DATA", "javascript:alert(1)", "\0"),
    ],
)
def test_nothing_is_fetched_or_opened_by_its_name(server: LiveServer, url: str) -> None:
    refusal(ask(server, url), 400, "data: URL")
    body = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}
    refusal(server.post("/v1/responses", body), 400, "data: URL")
    refusal(server.post("/v1/images/preview", {"image_url": url}), 400, "data: URL")


def test_without_an_allowed_folder_there_are_no_files(server: LiveServer, picture: Path) -> None:
    refusal(ask(server, picture.as_uri()), 400, "data: URL")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "/etc/passwd"},
        {"type": "image", "path": "/etc/passwd"},
        {"type": "image", "url": "file:///etc/passwd"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}, "path": "/etc/passwd"},
        {"type": "image_url", "image_url": ["/etc/passwd"]},
        {"type": "image"},
    ],
    ids=str,
)
def test_image_parts_of_the_python_api_are_none_here(server: LiveServer, part: dict[str, Any]) -> None:
    refusal(server.ask(messages=[{"role": "user", "content": [part]}]), 400)


def test_limits_of_pictures(guarded: tuple[LiveServer, Path], picture: Path) -> None:
    server, _ = guarded
    url = data_url(picture)
    refusal(ask(server, url, url, url), 400, "send 2 at most")
    large = picture.parent / "large.png"
    Image.new("L", (400, 400)).save(large)
    refusal(ask(server, data_url(large)), 400, "400 x 400")
    refusal(ask(server, "data:image/png;base64," + "A" * 3 * 2**20), 413)


def test_what_was_asked_is_not_in_the_log(server: LiveServer, picture: Path) -> None:
    secret = "xyzzy-in-nobodys-log"
    server.ask(messages=about(picture, secret), max_tokens=2)
    refusal(server.ask(messages=about(secret.encode(), secret)), 400)
    server.post(f"/{secret}?{secret}", {secret: secret})
    assert server.ask(messages=[{"role": secret, "content": secret}]).status_code == 400
    assert secret not in server.ask(messages=[{"role": "user", "content": [{"type": secret}]}]).text
    assert secret not in server.log.read_text()
    assert secret not in httpx.get(f"{server.url}/metrics").text


def test_llama_cpps_log_is_there_on_request_and_has_no_question_in_it(
    tiny_bundle: Path, server: LiveServer
) -> None:
    secret = "xyzzy-in-nobodys-log"
    with live_server(tiny_bundle, "-q", "F32", "-c", "256", "--no-cache", "--verbose") as talkative:
        assert talkative.ask(messages=[{"role": "user", "content": secret}], max_tokens=2).is_success
        assert "load_tensors" in talkative.log.read_text()
        assert secret not in talkative.log.read_text()
    assert "load_tensors" not in server.log.read_text()
