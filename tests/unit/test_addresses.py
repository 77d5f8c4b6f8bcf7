import ipaddress

import pytest

from jobs import addresses
from jobs.errors import InvalidRequest
from jobs.settings import Settings, Webhooks

DEFAULT, HTTP = Settings().webhooks, Webhooks(allow_http=True)

NOT_PUBLIC = [
    *("0.0.0.0", "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1"),
    *(
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.1",
        "192.0.0.192",
        "192.88.99.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
    ),
    *("255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "fe80::1", "fc00::1"),
    *("fd00:ec2::254", "ff02::1", "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "2002:7f00:1::"),
    *("2002:a9fe:a9fe::1", "2001:db8::1", "2001::1", "fec0::1"),
]
PUBLIC = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]

BAD_URLS = [
    *("http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "//example.com/"),
    *(
        "example.com",
        "",
        "https://",
        "https:///x",
        "https://ok@evil.com/",
        "https://ok:x@evil.com/",
        "https://ok\\@evil",
    ),
    *("https://ok.com\\.evil.com/", "https://a b/", "https://a\n.com/", "https://ex\u00e4mple.com/", "https://\ud800/"),
    *("https://a.com/#x", "https://a.com:25/", "https://a.com:0/", "https://a.com:99999/", "https://a.com:x/"),
    *("https://127.0.0.1/", "https://0x7f000001/", "https://2130706433/", "https://017700000001/", "https://127.1/"),
    *("https://0/", "https://169.254.169.254/latest", "https://[::1]/", "https://[::ffff:127.0.0.1]/"),
    *("https://[fd00:ec2::254]/", "https://[64:ff9b::7f00:1]/", "https://a.com/" + "x" * 2_048),
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_nothing_is_sent_to_an_address_that_is_not_public(address: str) -> None:
    assert not addresses.is_allowed(ipaddress.ip_address(address), DEFAULT)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_sent_to(address: str) -> None:
    assert addresses.is_allowed(ipaddress.ip_address(address), DEFAULT)


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::5"])
def test_a_network_can_be_allowed(address: str) -> None:
    settings = Webhooks.model_validate({"allowed_networks": ["10.1.0.0/16", "fd00::/64"]})
    assert addresses.is_allowed(ipaddress.ip_address(address), settings)
    assert not addresses.is_allowed(ipaddress.ip_address("10.2.0.1"), settings)


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_cannot_be_right_is_refused_by_name(url: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        addresses.check_url(url, DEFAULT)
    assert error.value.param == "url"


@pytest.mark.parametrize(
    "url", ["https://example.com", "https://a-b.example.com:8443/x?y=z", "https://8.8.8.8/", "https://unknown.invalid/"]
)
def test_a_url_that_may_be_right_is_taken(url: str) -> None:
    addresses.check_url(url, DEFAULT)


def test_plain_http_can_be_allowed_and_changes_nothing_else() -> None:
    addresses.check_url("http://example.com/", HTTP)
    for url in ("http://127.0.0.1/", "http://0x7f000001/", "ftp://example.com/"):
        with pytest.raises(InvalidRequest):
            addresses.check_url(url, HTTP)


def test_allowed_networks_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_WEBHOOKS__ALLOWED_NETWORKS", '["10.0.0.0/8", "fd00::/8"]')
    monkeypatch.setenv("PROMPTMILL_WEBHOOKS__RETRY_SECONDS", "[1, 2.5]")
    webhooks = Settings().webhooks
    assert [str(network) for network in webhooks.allowed_networks] == ["10.0.0.0/8", "fd00::/8"]
    assert webhooks.retry_seconds == (1, 2.5)
