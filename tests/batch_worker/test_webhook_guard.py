"""Which URLs may be called, and that a name cannot lead into another network."""

import socket
from typing import Any

import pytest

from batch_worker.webhook_guard import NotAllowed, target_of
from settings.batch import BatchSettings

ALLOW = "https://example.org/hooks/, http://10.0.0.7:8000/"


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("https://example.org/hooks/a?b=c", True),
        ("https://EXAMPLE.org/hooks/a", True),
        ("http://10.0.0.7:8000/x", True),
        ("http://example.org/hooks/a", False),
        ("https://example.org:444/hooks/a", False),
        ("https://example.org/hooks/../admin", False),
        ("https://example.org/other", False),
        ("https://example.org.evil.net/hooks/", False),
        ("https://example.org@evil.net/hooks/", False),
        ("https://user@example.org/hooks/", False),
        ("https://example.org\\@evil.net/hooks/", False),
        ("http://10.0.0.7/x", False),
        ("http://10.0.0.7:99999/x", False),
        ("file:///hooks/", False),
        ("", False),
    ],
)
def test_only_what_begins_as_an_allowed_url(url: str, is_allowed: bool) -> None:
    assert BatchSettings(webhook_allow=ALLOW).allows_webhook(url) is is_allowed
    assert not BatchSettings().allows_webhook(url)


def resolve_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fe80::1", "224.0.0.1", "0.0.0.0"]
)
def test_a_name_that_leads_inside_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(address, monkeypatch)
    with pytest.raises(NotAllowed):
        target_of("https://example.org/hooks/a", BatchSettings(webhook_allow=ALLOW))


def test_the_connection_goes_to_the_address_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to("93.184.215.14", monkeypatch)
    target = target_of("https://example.org/hooks/a?b=c", BatchSettings(webhook_allow=ALLOW))
    assert target.url == "https://93.184.215.14:443/hooks/a?b=c"
    assert (target.host_header, target.tls_name) == ("example.org", "example.org")


def test_private_networks_and_literal_addresses_are_the_operators_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert target_of("http://10.0.0.7:8000/x", BatchSettings(webhook_allow=ALLOW)).url == "http://10.0.0.7:8000/x"
    private = BatchSettings(webhook_allow=ALLOW, webhook_private=True)
    resolve_to("10.1.2.3", monkeypatch)
    assert target_of("https://example.org/hooks/a", private).url == "https://10.1.2.3:443/hooks/a"
    resolve_to("169.254.169.254", monkeypatch)
    with pytest.raises(NotAllowed):
        target_of("https://example.org/hooks/a", private)
