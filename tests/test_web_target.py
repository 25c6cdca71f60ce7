"""Which address a URL leads to, and which addresses are nobody's business."""

import socket
from typing import Any

import pytest

from web_target import NotAllowed, resolved

INSIDE = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1"),
    *("::ffff:169.254.169.254", "64:ff9b::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::"),
]


def resolve_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_up(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)


@pytest.mark.parametrize("address", INSIDE)
def test_a_name_that_leads_inside_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(address, monkeypatch)
    with pytest.raises(NotAllowed, match="private network"):
        resolved("https://example.org/a", allows_private=False, trusts_literal=True)


@pytest.mark.parametrize("address", INSIDE)
def test_a_literal_address_is_judged_like_any_other(address: str) -> None:
    written = f"[{address}]" if ":" in address else address
    with pytest.raises(NotAllowed, match="private network"):
        resolved(f"http://{written}/a", allows_private=False, trusts_literal=False)


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1"])
def test_a_private_network_has_no_secrets_of_a_cloud(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(address, monkeypatch)
    with pytest.raises(NotAllowed):
        resolved("https://example.org/a", allows_private=True, trusts_literal=True)


def test_the_connection_goes_to_the_address_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to("93.184.215.14", monkeypatch)
    target = resolved("https://example.org:8443/a?b=c#d", allows_private=False, trusts_literal=False)
    assert target.url == "https://93.184.215.14:8443/a?b=c"
    assert (target.host_header, target.tls_name) == ("example.org:8443", "example.org")


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://example.org/", "gopher://example.org/", "//example.org/", "example.org", ""),
        *("http:///a", "http://user@example.org/", "http://:pass@example.org/", "http://example.org:99999/"),
    ],
)
def test_only_plain_web_addresses(url: str) -> None:
    with pytest.raises(NotAllowed):
        resolved(url, allows_private=True, trusts_literal=True)
