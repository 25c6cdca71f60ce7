"""The address of our Redis as Celery wants it. Pure, but for the password's file."""

from typing import Any
from urllib.parse import quote, unquote, urlsplit

from broker.address import parse_address
from errors import BrokerError, ConfigError
from settings.broker import RedisSettings


def celery_broker(settings: RedisSettings) -> tuple[str, dict[str, Any]]:
    """URL and transport options. Raises ConfigError for a Redis Cluster, which Celery's transport cannot use."""
    user, password = settings.username, _password(settings)
    address = parse_address(settings.url)
    if address is not None:
        if not address.service:
            raise ConfigError("PDQ_REDIS__URL = redis+cluster://...: batch workers need one Redis, or sentinels")
        user = user or address.credentials.get("username", "")
        password = password or address.credentials.get("password", "")
        hosts = ";".join(
            f"sentinel://{_login(user, password)}{host}:{port}/{address.db}" for host, port in address.nodes
        )
        asked = {"sentinel_kwargs": address.sentinel_credentials} if address.sentinel_credentials else {}
        return hosts, {"master_name": address.service, **asked}
    parts = urlsplit(settings.url)
    user = user or unquote(parts.username or "")
    password = password or unquote(parts.password or "")
    if parts.scheme == "unix":
        db = dict(pair.partition("=")[::2] for pair in parts.query.split("&") if pair).get("db", "0")
        return f"redis+socket://{_login(user, password)}{quote(parts.path)}?virtual_host={db}", {}
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{_login(user, password)}{host}{parts.path}{'?' if parts.query else ''}{parts.query}", {}


def _login(user: str, password: str) -> str:
    return f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""


def _password(settings: RedisSettings) -> str:
    if settings.password_file is None:
        return ""
    try:
        return settings.password_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BrokerError(f"Redis password file {settings.password_file}: {error.strerror}") from None
