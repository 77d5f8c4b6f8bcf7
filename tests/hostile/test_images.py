"""F91, F92: images that point inwards, that explode, that lie. Real decoders, a real listener, no database."""

import asyncio
import base64
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pictures
import psutil
import pytest
import services
import trustme
from receivers import Names, Receiver, receiving, status

from jobs import db
from jobs.errors import RequestRejected
from jobs.settings import Images
from workers import endpoints
from workers.engines.scripted import ScriptedEngine
from workers.images.resolver import Resolver

CHAT = "/v1/chat/completions"
# Nobody is asked: nothing here names a file.
NO_DATABASE = db.make_engine("postgresql://127.0.0.1:1/none", connections=1)

Story = Callable[[Resolver], Awaitable[Any]]


def with_resolver(story: Story, **settings: Any) -> Any:
    async def run() -> Any:
        resolver = Resolver(Images(**settings), NO_DATABASE)
        try:
            return await story(resolver)
        finally:
            await resolver.close()

    return asyncio.run(run())


async def ask(resolver: Resolver, *urls: str) -> str:
    """Return what the scripted engine says that it was shown."""
    engine = ScriptedEngine(["scripted"], stall_seconds=60)
    body = {"model": "scripted", "messages": pictures.user(*map(pictures.part, urls))}
    answer = await endpoints.run(engine, CHAT, body, tenant="p", images=resolver)
    return str(answer["choices"][0]["message"]["content"])


async def refused(resolver: Resolver, *urls: str) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        await ask(resolver, *urls)
    return caught.value


def show(*urls: str, **settings: Any) -> str:
    return str(with_resolver(lambda resolver: ask(resolver, *urls), **settings))


def refusal(*urls: str, **settings: Any) -> RequestRejected:
    error: RequestRejected = with_resolver(lambda resolver: refused(resolver, *urls), **settings)
    assert (error.status_code, error.param) == (400, f"messages.0.content.{len(urls) - 1}.image_url.url")
    assert f"'{error.param}'" in error.message
    assert len(error.message) < 300
    return error


# F92: what is in the request itself.


def test_f92_images_come_through_in_their_places() -> None:
    png, jpeg = pictures.encoded("png"), pictures.encoded("jpeg", (30, 20))
    webp = pictures.data_url(pictures.encoded("webp", (8, 9)), "image/webp")
    seen = show(pictures.data_url(png), pictures.data_url(jpeg, "image/jpeg"), webp)
    assert seen == "[image 64x48 png][image 30x20 jpeg][image 8x9 png]"


def test_f92_an_image_is_what_its_bytes_are_whatever_it_is_said_to_be() -> None:
    jpeg = pictures.encoded("jpeg")
    for kind in ("image/png", "image/svg+xml", "video/mp4", "text/html", ""):
        assert show(pictures.data_url(jpeg, kind)) == "[image 64x48 jpeg]"
    assert refusal(pictures.data_url(b"<svg/>", "image/png")).code == "unsupported_image_media_type"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (pictures.png_of(50_000, 50_000), "image_too_large"),
        (pictures.png_of(2**31 - 1, 2**31 - 1), "image_too_large"),
        (pictures.encoded("tiff"), "unsupported_image_media_type"),
        (pictures.encoded("jpeg2000"), "unsupported_image_media_type"),
        (pictures.encoded("png", (300, 200))[:-40], "image_parse_error"),
        (pictures.encoded("jpeg", (300, 200))[:400], "image_parse_error"),
        (pictures.png_of(4_000, 4_000, b"\0" * 100), "image_parse_error"),
        (b"", "empty_image_file"),
    ],
)
def test_f92_an_image_that_cannot_be_used_costs_its_row_and_says_why(data: bytes, code: str) -> None:
    good = pictures.data_url(pictures.encoded())
    assert refusal(good, pictures.data_url(data)).code == code


def test_f92_caps_are_settings() -> None:
    url = pictures.data_url(pictures.encoded("png", (100, 100)))
    assert show(url, max_pixels=10_000) == "[image 100x100 png]"
    assert refusal(url, max_pixels=9_999).code == "image_too_large"
    size = len(base64.b64decode(url.partition(",")[2]))
    assert show(url, max_bytes=size) == "[image 100x100 png]"
    assert refusal(url, max_bytes=size - 1).code == "image_file_too_large"
    assert refusal(url, max_bytes=10).code == "image_file_too_large"
    error = with_resolver(lambda resolver: refused(resolver, url, url), max_per_request=1)
    assert (error.param, error.message) == ("messages", "A request has at most 1 images.")


def test_f92_one_pixel_and_one_line_are_images() -> None:
    for size in ((1, 1), (65_000, 1), (1, 65_000)):
        assert show(pictures.data_url(pictures.encoded("png", size))) == f"[image {size[0]}x{size[1]} png]"


def test_f92_an_image_on_its_side_is_shown_upright() -> None:
    assert show(pictures.data_url(pictures.turned())) == "[image 48x64 jpeg]"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,@@@@", "invalid_base64_image"),
        ("data:image/png;base64,AAA", "invalid_base64_image"),
        ("data:image/png;base64,AAAA\n", "invalid_base64_image"),
        ("data:image/png;base64,\u00e4\u00e4\u00e4\u00e4", "invalid_base64_image"),
        ("data:image/png;base64,", "empty_image_file"),
        ("data:image/png,abc", "invalid_image_url"),
        ("data:", "invalid_image_url"),
        ("data:" + "x" * 10_000 + ";base64,AAAA", "invalid_image_url"),
    ],
)
def test_f92_a_data_url_that_is_none_is_refused(url: str, code: str) -> None:
    assert refusal(url).code == code


def test_f92_a_refusal_is_remembered_like_an_image() -> None:
    """The same bomb in every row of a batch is looked at once."""
    bomb = pictures.data_url(pictures.png_of(50_000, 50_000))

    async def story(resolver: Resolver) -> None:
        first = await refused(resolver, bomb)
        await kill_decoders(resolver)
        again = await refused(resolver, pictures.data_url(pictures.encoded()), bomb)
        assert first.param != again.param
        assert (first.code, again.code) == ("image_too_large", "image_too_large")

    with_resolver(story)


# The decoders.


async def kill_decoders(resolver: Resolver) -> None:
    for process in resolver._checker._started:
        os.kill(process.pid, signal.SIGKILL)


def test_a_decoder_that_dies_is_replaced() -> None:
    async def story(resolver: Resolver) -> None:
        for number in range(3):
            url = pictures.data_url(pictures.encoded("png", (10 + number, 10)))
            assert await ask(resolver, url) == f"[image {10 + number}x10 png]"
            await kill_decoders(resolver)

    with_resolver(story, processes=1)


def test_decoders_end_with_the_worker() -> None:
    pids: list[int] = []

    async def story(resolver: Resolver) -> None:
        urls = [pictures.data_url(pictures.encoded("png", (10 + number, 10))) for number in range(6)]
        await asyncio.gather(*(ask(resolver, url) for url in urls))
        pids.extend(process.pid for process in resolver._checker._started)

    with_resolver(story, processes=2)
    assert 1 <= len(pids) <= 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


DYING_WORKER = """
import asyncio, os, signal, sys
from jobs.settings import Images
from workers.images.checking import Checker

async def main():
    checker = Checker(Images())
    await checker.check(sys.stdin.buffer.read())
    print(*(process.pid for process in checker._started), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_decoders_end_with_a_worker_that_is_killed() -> None:
    command = [sys.executable, "-c", DYING_WORKER]
    worker = subprocess.run(command, input=pictures.encoded(), capture_output=True, check=False)
    assert worker.returncode == -signal.SIGKILL
    (pid,) = map(int, worker.stdout.split())
    services.wait_until(lambda: not is_running(pid), "the decoder ends")


def is_running(pid: int) -> bool:
    """Tell whether a process does anything; where nobody collects orphans, its number may stay."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_decoder_has_no_secrets_and_few_rights() -> None:
    async def story(resolver: Resolver) -> None:
        await ask(resolver, pictures.data_url(pictures.encoded()))
        (process,) = resolver._checker._started
        folder = Path(f"/proc/{process.pid}")
        assert (folder / "environ").read_bytes() == b""
        limits = (folder / "limits").read_text()
        assert "unlimited" not in next(line for line in limits.splitlines() if line.startswith("Max address space"))
        assert next(line for line in limits.splitlines() if line.startswith("Max file size")).split()[3] == "0"

    with_resolver(story)


# F91: what has to be fetched.

INWARD = [
    *("http://127.0.0.1:{port}/", "https://127.0.0.1:{port}/", "https://localhost:{port}/", "https://[::1]:{port}/"),
    *("https://0x7f000001:{port}/", "https://2130706433:{port}/", "https://127.1:{port}/", "https://0:{port}/"),
    *("https://[::ffff:127.0.0.1]:{port}/", "https://ok@127.0.0.1:{port}/", "https://ok\\@127.0.0.1:{port}/"),
    *("https://169.254.169.254/latest/meta-data", "file:///etc/passwd", "gopher://127.0.0.1:{port}/_x", "//x", "x"),
    *("ftp://127.0.0.1:{port}/", " https://127.0.0.1:{port}/", "https://evil.example/", "javascript:1"),
]
LISTED = {
    "allow_remote": True,
    "allowed_hosts": ("images.test", "127.0.0.1", "localhost", "0x7f000001", "[::1]", "::1"),
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def test_f91_an_address_that_is_refused_takes_no_memory() -> None:
    async def story(resolver: Resolver) -> None:
        for number in range(20):
            await refused(resolver, f"https://{number}.example/{'x' * 100_000}")
        assert not resolver._known._kept

    with_resolver(story)


@pytest.mark.parametrize("url", INWARD)
def test_f91_nothing_is_fetched_unless_it_is_switched_on(receiver: Receiver, url: str) -> None:
    error = refusal(url.format(port=receiver.port))
    assert error.code == "invalid_image_url"
    assert "remote images are off" in error.message and "PROMPTMILL_IMAGES__ALLOW_REMOTE" in error.message
    assert receiver.connections == 0


@pytest.mark.parametrize("url", INWARD)
def test_f91_no_connection_is_made_to_an_internal_address(receiver: Receiver, url: str) -> None:
    """Not even to hosts that the operator listed: the address decides."""
    error = refusal(url.format(port=receiver.port), **LISTED)
    assert error.code in ("invalid_image_url", "failed_to_download_image")
    assert receiver.connections == 0


@pytest.mark.parametrize("host", ["evil.example", "images.test.evil.example", "ximages.test", "images.test."])
def test_f91_hosts_that_are_not_listed_are_not_looked_up(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    names = Names(monkeypatch, ["127.0.0.1"], host=host)
    assert "its host is not allowed" in refusal(f"https://{host}/a.png", **LISTED).message
    assert "its host is not allowed" in refusal(f"https://{host}/a.png", allow_remote=True).message
    assert names.asked == 0


def serve(data: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return reply


class Host:
    """`images.test`, which has a certificate that we trust."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.settings = {**LISTED, "allowed_networks": ["127.0.0.1/32"], "timeout_seconds": 5}

    @property
    def url(self) -> str:
        return f"https://images.test:{self.receiver.port}/a.png?b=c"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("images.test").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    Names(monkeypatch, ["127.0.0.1"], host="images.test")
    with receiving(tls=tls) as receiver:
        yield Host(receiver)


def test_an_image_of_a_listed_host_is_fetched_once(host: Host) -> None:
    host.receiver.replies.append(serve(pictures.encoded()))

    async def story(resolver: Resolver) -> list[str]:
        return await asyncio.gather(*(ask(resolver, host.url, host.url) for _ in range(20)))

    assert set(with_resolver(story, **host.settings)) == {"[image 64x48 png][image 64x48 png]"}
    (message,) = host.receiver.messages
    assert message.path == "/a.png?b=c"
    assert "authorization" not in message.headers and "cookie" not in message.headers


def test_f91_a_redirect_is_not_followed(host: Host, receiver: Receiver) -> None:
    host.receiver.replies.append(status(302, location=receiver.url))
    assert refusal(host.url, **host.settings).code == "failed_to_download_image"
    assert (len(host.receiver.messages), receiver.connections) == (1, 0)


def test_f91_a_name_that_points_inwards_gains_nothing(host: Host) -> None:
    error = refusal(host.url, **{**host.settings, "allowed_networks": []})
    assert (error.code, host.receiver.connections) == ("failed_to_download_image", 0)


def test_f91_an_image_without_end_is_left(host: Host) -> None:
    sent: list[int] = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        sent.extend(handler.wfile.write(b"x" * 100_000) for _ in range(10_000))

    host.receiver.replies.append(endless)
    assert refusal(host.url, **host.settings, max_bytes=1_000_000).code == "image_file_too_large"
    assert len(sent) < 10_000


def test_f91_a_host_that_drips_is_left(host: Host) -> None:
    stop = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not stop.wait(0.05):
            handler.wfile.write(b"x")

    host.receiver.replies.append(drip)
    try:
        assert refusal(host.url, **{**host.settings, "timeout_seconds": 0.5}).code == "failed_to_download_image"
    finally:
        stop.set()


def test_f91_a_page_is_no_image(host: Host) -> None:
    host.receiver.replies += [serve(b"<html>secret</html>"), status(404)]
    error = refusal(host.url, **host.settings)
    assert error.code == "unsupported_image_media_type"
    assert "secret" not in error.message
    assert refusal(host.url, **host.settings).code == "failed_to_download_image"
