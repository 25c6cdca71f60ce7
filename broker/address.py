"""What PDQ_REDIS__URL says: one Redis, or who is to be asked where the master is. Pure; connects to nothing.

redis://, rediss:// and unix:// are redis-py's own. `redis+sentinel://host:port,host:port/service[/db]` names sentinels
and the service they watch; `redis+cluster://host:port,host:port` names nodes of a Redis Cluster. User and password
before the @ are the masters'; sentinels are asked with `?sentinel_username=` and `?sentinel_password=`.
"""

from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from errors import BrokerError

SENTINEL, CLUSTER = "redis+sentinel", "redis+cluster"
_DEFAULT_PORTS = {SENTINEL: 26379, CLUSTER: 6379}


@dataclass(frozen=True, slots=True)
class MasterAddress:
    """Whom to ask for the master."""

    nodes: tuple[tuple[str, int], ...]  # host, port
    service: str = ""  # empty: a Redis Cluster
    db: int = 0
    credentials: dict[str, str] = field(default_factory=dict)  # of the master
    sentinel_credentials: dict[str, str] = field(default_factory=dict)


def parse_address(url: str) -> MasterAddress | None:
    """None where redis-py can read the URL itself. Raises BrokerError that names what is wrong, not the password."""
    kind, _, rest = url.partition("://")
    if kind not in _DEFAULT_PORTS:
        return None
    given, _, hosts = rest.rpartition("@")
    # urlsplit knows one host only; the list of them is cut out for it.
    listed, _, path = hosts.partition("/")
    listed, question, query = listed.partition("?")
    split = urlsplit(f"redis://{given + '@' if given else ''}host/{path}{question}{query}")
    options = {name: values[-1] for name, values in parse_qs(split.query).items()}
    parts = [unquote(part) for part in split.path.split("/") if part]
    service = parts.pop(0) if kind == SENTINEL and parts else ""
    db = parts.pop(0) if parts else "0"
    unknown = sorted(options.keys() - {"sentinel_username", "sentinel_password"})
    if kind == SENTINEL and not service:
        raise BrokerError(f"{kind}://{hosts} names no service; wanted {kind}://host:port,host:port/service")
    if parts or not db.isdigit() or (kind == CLUSTER and db != "0") or unknown:
        raise BrokerError(f"{kind}://{listed}: {'/'.join([db, *parts])!r} {unknown or ''} cannot be read; see the docs")
    sentinel = {"username": options.get("sentinel_username"), "password": options.get("sentinel_password")}
    own = {"username": unquote(split.username or ""), "password": unquote(split.password or "")}
    credentials = {name: value for name, value in own.items() if value}
    asked = {name: value for name, value in sentinel.items() if value}
    nodes = tuple(_node(text, kind) for text in listed.split(","))
    return MasterAddress(nodes, service, int(db), credentials, asked)


def _node(text: str, kind: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(_DEFAULT_PORTS[kind])
    if not host or not port.isdigit():
        raise BrokerError(f"{kind}://{text}: {text!r} is no host:port")
    return host.strip("[]"), int(port)
