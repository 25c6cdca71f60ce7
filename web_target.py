"""Which address a URL leads to: the host is looked up once, judged, and the connection is made to what was judged.

Guards against requests into networks that a client cannot reach itself (SSRF): a name that leads elsewhere at its
second look-up leads nowhere here. Which URLs may be asked for at all is the settings' to say. Knows no HTTP.
"""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address


class NotAllowed(Exception):
    """The URL may not be asked for."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect to, and as whom to address it."""

    url: str  # with the address in place of the name
    host_header: str
    tls_name: str


def resolved(url: str, *, allows_private: bool, trusts_literal: bool) -> Target:
    """Blocking: looks the host up. Raises NotAllowed, and OSError when it has no address.

    `allows_private`: whether a name may lead into a private network; `trusts_literal`: whether an address that stands
    in the URL itself is meant, whatever it is. Link-local addresses, where clouds keep secrets, need the latter.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise NotAllowed(f"it is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or parts.password is not None:
        raise NotAllowed("it must begin with http:// or https:// and a host, without a user")
    address = ipaddress.ip_address(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    is_meant = trusts_literal and _is_literal(host)
    if not (is_meant or is_public(address) or (allows_private and _is_of_a_private_network(address))):
        raise NotAllowed(f"{host} has an address of a private network")
    written = f"[{address}]" if address.version == 6 else str(address)
    return Target(urlunsplit((parts.scheme, f"{written}:{port}", parts.path, parts.query, "")), parts.netloc, host)


def is_public(address: Address) -> bool:
    """Whether it is an address of the internet at large, also where an IPv6 one stands for an IPv4 one."""
    return all(one.is_global and not one.is_multicast for one in (address, *_inner(address)) if not _is_mapped(one))


def _is_of_a_private_network(address: Address) -> bool:
    return not any(one.is_link_local or one.is_multicast or one.is_unspecified for one in (address, *_inner(address)))


def _is_mapped(address: Address) -> bool:
    """Whether it says nothing but the IPv4 address in it."""
    return isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None


def _inner(address: Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that packets to it may come to: mapped, translated or tunnelled."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in inner if one is not None]


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
