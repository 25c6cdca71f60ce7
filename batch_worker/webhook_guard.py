"""Which address a webhook goes to: the host is looked up once, judged, and the connection is made to what was judged.

Guards against requests into networks that the client cannot reach itself (SSRF). The settings name the hosts; this
keeps a name among them from leading elsewhere. An operator who allows a literal address means that address.
"""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from settings.batch import BatchSettings


class NotAllowed(Exception):
    """The webhook may not be called."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect to, and as whom to address it."""

    url: str  # with the address in place of the name
    host_header: str
    tls_name: str


def target_of(url: str, settings: BatchSettings) -> Target:
    """Blocking: looks the host up. Raises NotAllowed, and OSError when it has no address."""
    if not settings.allows_webhook(url):
        raise NotAllowed("the URL does not begin as one of PDQ_BATCH__WEBHOOK_ALLOW")
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = ipaddress.ip_address(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    if not (_is_literal(host) or is_public(address) or (settings.webhook_private and not address.is_link_local)):
        raise NotAllowed(f"{host} has an address of a private network")
    written = f"[{address}]" if address.version == 6 else str(address)
    return Target(urlunsplit((parts.scheme, f"{written}:{port}", parts.path, parts.query, "")), parts.netloc, host)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it is an address of the internet at large, also where an IPv6 one stands for an IPv4 one."""
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_global and not (mapped or address).is_multicast


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
