"""The proxies of docs/deploy.md, word for word but for names, ports and certificates: uploads and downloads go through."""

import re
import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
import services
import trustme

from api.stack.program import Program, answers, free_port

ROOT = Path(__file__).resolve().parent.parent.parent
NGINX = """\
daemon off; master_process off; pid {home}/pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
{site}
}}
"""
# More than the memory of either proxy has room for by default; what nginx takes without a word is 1 MB.
BYTES = 30_000_000


def block(name: str) -> str:
    page = (ROOT / "docs" / "deploy.md").read_text()
    return re.search(rf"<!-- {name} -->\n```{name}\n(.*?)```", page, re.S)[1]  # type: ignore[index]


def nginx(home: Path, port: int, api: int) -> list[str]:
    site = block("nginx").replace("127.0.0.1:8000", f"127.0.0.1:{api}")
    # As the page says for nginx before 1.25.
    site = site.replace("listen 443 ssl;\n    http2 on;", f"listen 127.0.0.1:{port} ssl http2;")
    site = site.replace("/etc/ssl/llm.example.com.pem", f"{home}/pem").replace(
        "/etc/ssl/llm.example.com.key", f"{home}/key"
    )
    (home / "nginx.conf").write_text(NGINX.format(home=home, site=site))
    return ["-c", str(home / "nginx.conf"), "-e", "stderr"]


def caddy(home: Path, port: int, api: int) -> list[str]:
    site = block("caddy").replace("127.0.0.1:8000", f"127.0.0.1:{api}")
    site = site.replace("llm.example.com {", f"https://localhost:{port} {{\n    tls {home}/pem {home}/key")
    (home / "Caddyfile").write_text("{\n    admin off\n    auto_https off\n}\n" + site)
    return ["run", "--config", str(home / "Caddyfile"), "--adapter", "caddyfile"]


@pytest.fixture(params=[nginx, caddy], ids=lambda make: make.__name__)
def proxy(
    request: pytest.FixtureRequest, running: services.Stack, tmp_path: Path
) -> Iterator[tuple[str, ssl.SSLContext]]:
    """Yield the URL behind the proxy, and what trusts its certificate."""
    make: Callable[[Path, int, int], list[str]] = request.param
    program = shutil.which(make.__name__)
    if program is None:
        pytest.skip(f"no {make.__name__}")
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key")
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(tmp_path / "pem", append=True)
    context = ssl.create_default_context()
    authority.configure_trust(context)

    async def ready() -> bool:
        return await answers("127.0.0.1", port)

    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    served = Program(make.__name__, [program, *make(tmp_path, port, running.port)], ready, environment=environment)
    with services.running(served, tmp_path / "log"):
        yield f"https://localhost:{port}", context


def test_a_large_file_goes_up_and_comes_back(proxy: tuple[str, ssl.SSLContext], running: services.Stack) -> None:
    url, context = proxy
    data = bytes(range(256)) * (BYTES // 256)
    login = {"Authorization": f"Bearer {running.key()}"}
    with httpx2.Client(base_url=url, headers=login, verify=context, timeout=60) as client:
        sent = client.post("/v1/files", files={"file": ("a.bin", data)}, data={"purpose": "user_data"})
        assert sent.status_code == 200, sent.text
        assert client.get(f"/v1/files/{sent.json()['id']}/content").content == data
        assert client.get("/v1/batches").json()["data"] == []
        assert client.get("/readyz").status_code == 200
