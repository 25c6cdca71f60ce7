"""Who may pass: every route asks for an API key, but for the few that are listed here.

Pure ASGI: Starlette's BaseHTTPMiddleware would hide a client that leaves. Knows paths, keys and what becomes of a
request that is refused; knows nothing of text. A path that stands in no list asks for an admin key.
"""

import asyncio
from collections.abc import Iterable

from redis.exceptions import RedisError
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import TooManyRequests, error_response, message_response, stream_failure
from api.key_file import Scope as KeyScope
from api.key_lease import KeyLease
from api.services import Services

OPEN_PATHS = frozenset({"/health", "/healthz", "/ping", "/liveness", "/readiness"})
PAGE_PREFIX = "/page/"  # its files; like the page itself they are the same for everybody and say nothing of the cluster
CLIENT_PATHS = frozenset(
    {
        *("/", "/generate", "/generate_stream", "/get_score", "/tokens", "/get_model_name"),
        *("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"),
    }
)
# What counts in no limit: about a request that runs already, or it could not be cancelled; and what costs nothing.
CLIENT_PREFIXES = ("/requests/", "/v1/models/", "/v1/files/", "/v1/batches/")
UNCOUNTED_PATHS = frozenset({"/v1/models", "/tokenizer_info", "/version", "/v1/files", "/v1/batches"})
MONITOR_PATHS = frozenset(
    {"/metrics", "/token_load", "/cluster", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
)

NO_KEY = "this server asks for an API key: Authorization: Bearer KEY, or X-API-Key: KEY"
WRONG_KEY = "the API key is not known or no longer valid"


def scopes_for(path: str) -> frozenset[KeyScope]:
    """Which scopes of keys may ask for `path`."""
    bare = _bare(path)
    if bare in CLIENT_PATHS | UNCOUNTED_PATHS or path.startswith(CLIENT_PREFIXES):
        return frozenset({KeyScope.CLIENT, KeyScope.ADMIN})
    if bare in MONITOR_PATHS:
        return frozenset({KeyScope.MONITOR, KeyScope.ADMIN})
    return frozenset({KeyScope.ADMIN})


def is_open(method: str, path: str) -> bool:
    """Whether nobody is asked for a key. Where a key can be typed in is open, or none could be."""
    return path in OPEN_PATHS or (method in ("GET", "HEAD") and (path == "/" or path.startswith(PAGE_PREFIX)))


def is_counted(path: str) -> bool:
    """Whether asking for `path` uses up a key's limits."""
    return _bare(path) in CLIENT_PATHS


def _bare(path: str) -> str:
    return path.rstrip("/") or "/"  # "/generate/" is redirected to "/generate"


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What the request says its key is; empty when it says nothing. `Authorization: Bearer` comes before X-API-Key."""
    found = {name: value for name, value in headers if name in (b"authorization", b"x-api-key")}
    scheme, _, bearer = found.get(b"authorization", b"").strip().partition(b" ")
    return bearer.strip() if scheme.lower() == b"bearer" else found.get(b"x-api-key", b"").strip()


class KeyGate:
    """Middleware: puts the key's id into `scope["pdq.owner"]` ("" where no keys are asked for), its scope into
    `scope["pdq.scope"]`, its lease into `scope["pdq.lease"]` where it has limits, or answers 401, 403 or 429."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ring = self._services.key_ring
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope["pdq.owner"] = ""
        if ring is None or (scope["type"] == "http" and is_open(scope["method"], scope["path"])):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets; should there be, they must come through here
            await send({"type": "websocket.close", "code": 1008})
            return
        path: str = scope["path"]
        presented = presented_key(scope["headers"])
        key = ring.find(presented) if presented else None
        if key is None:
            answer = message_response(path, 401, WRONG_KEY if presented else NO_KEY, {"WWW-Authenticate": "Bearer"})
            await answer(scope, receive, send)
            return
        scopes = scopes_for(path)
        if key.scope not in scopes:
            answer = message_response(path, 403, f"this asks for an API key of scope {' or '.join(sorted(scopes))}")
            await answer(scope, receive, send)
            return
        scope["pdq.owner"], scope["pdq.scope"] = key.id, key.scope
        limits = ring.limits_of(key)
        if not (is_counted(path) and limits.is_any):
            await self._app(scope, receive, send)
            return
        lease = KeyLease(self._services.broker, key.id, limits, self._services.settings.api.arrival_timeout_s)
        await self._under_limits(lease, scope, receive, send)

    async def _under_limits(self, lease: KeyLease, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await lease.enter()
        except (TooManyRequests, RedisError) as error:
            await error_response(scope["path"], stream_failure(error))(scope, receive, send)
            return
        scope["pdq.lease"] = lease
        try:
            await self._app(scope, receive, send)
        finally:
            # In a task of its own, so that no second cancellation can keep it from being given back.
            await asyncio.shield(asyncio.create_task(lease.leave()))
