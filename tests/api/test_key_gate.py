"""Who passes: every route without exception, every way to show a key, what the scopes may."""

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from api.app import create_app
from api.errors import is_openai
from api.key_file import KeyFileError, Scope, disable_key, hash_of
from api.key_gate import CLIENT_PATHS, MONITOR_PATHS, OPEN_PATHS, is_counted, is_open, scopes_for
from api.key_ring import CHECK_S
from api.server import is_loopback, serve
from settings.api import SecuritySettings
from settings.loading import Settings
from tests.api.fake_cluster import fake_cluster, run, until
from tests.api.keys import KeyFile
from tests.api.test_connections import free_port

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
PROMPT = {"inputs": "What is AI?", "parameters": {}}


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    file = KeyFile(tmp_path)
    file.add("alice")
    file.add("grafana", Scope.MONITOR)
    file.add("root", Scope.ADMIN)
    return file


def paths_of(routes: Any) -> Iterator[str]:
    """The path of every route, those of included routers too; a kind that is not known here fails the test."""
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            assert route.include_context.prefix == "", "a prefix is not known to this test"
            yield from paths_of(included.routes)
        else:
            assert isinstance(route, Route), f"{route} is not known to this test"
            yield route.path.replace("{", "").replace("}", "")


def test_every_route_but_the_open_ones_asks_for_a_key(settings: Settings, keys: KeyFile) -> None:
    async def main() -> None:
        async with fake_cluster(keys.settings(settings)) as cluster:
            closed = [path for path in paths_of(cluster.app.routes) if path not in OPEN_PATHS]
            assert len(closed) >= 10
            spellings = [
                *closed,
                *(f"{path.rstrip('/')}/" for path in (*closed, *OPEN_PATHS)),
                "/nope",
                "http://test//health",
                "/health/x",
            ]
            spellings += ["/HEALTH", "/health%2f", "/health;x", "/%68ealth/", "/health/../generate", "/docs?x=/health"]
            for path in spellings:
                for method in METHODS:
                    if is_open(method, path):
                        continue
                    answer = await cluster.client.request(method, path)
                    assert answer.status_code == 401, (method, path)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert "x-request-id" in answer.headers
                    assert method == "HEAD" or list(answer.json()) == ["error" if is_openai(path) else "message"]
            for path in (*OPEN_PATHS, "/", "/page/main.js"):
                assert (await cluster.client.get(path)).status_code == 200, path
            assert cluster.requests == []

    run(main())


def test_every_route_stands_in_a_list(settings: Settings) -> None:
    """A new route is the admins' alone until somebody decides; this is where that is noticed."""

    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster:
            for path in paths_of(create_app(cluster.services).routes):
                is_listed = is_open("GET", path) or scopes_for(path) != {Scope.ADMIN}
                assert is_listed, f"{path} is in none of the lists of api/key_gate.py"

    run(main())
    assert not OPEN_PATHS & (CLIENT_PATHS | MONITOR_PATHS)


def test_of_the_page_only_its_files_are_open() -> None:
    for path in ("/", "/page/main.js", "/page/none"):
        assert is_open("GET", path) and is_open("HEAD", path)
        assert not any(is_open(method, path) for method in METHODS if method not in ("GET", "HEAD"))
    assert not any(is_open("GET", path) for path in ("/page", "/cluster", "/generate", "//", "/pages/x", "x/page/"))


def test_a_request_that_runs_is_its_clients_to_ask_about_and_to_cancel_at_any_limit() -> None:
    for path in ("/requests/r", "/requests/r/stream"):
        assert Scope.CLIENT in scopes_for(path) and not is_counted(path)
    assert scopes_for("/requestsx") == scopes_for("/requests") == {Scope.ADMIN}
    assert is_counted("/generate") and is_counted("/generate/") and not is_counted("/metrics")


def test_scopes(settings: Settings, keys: KeyFile) -> None:
    async def main() -> None:
        async with fake_cluster(keys.settings(settings)) as cluster:
            cluster.script = cluster.length_script(" AI")

            async def status(key: str, method: str, path: str) -> int:
                body = PROMPT if method == "POST" else None
                answer = await cluster.client.request(method, path, json=body, headers=keys.bearer(key))
                return answer.status_code

            for path in ("/metrics", "/token_load", "/cluster", "/docs"):
                codes = [await status(key, "GET", path) for key in ("alice", "grafana", "root")]
                assert codes == [403, 200, 200], path
            for path in ("/generate", "/generate_stream", "/"):
                codes = [await status(key, "POST", path) for key in ("alice", "grafana", "root")]
                assert codes == [200, 403, 200], path
            assert [await status(key, "GET", "/nope") for key in ("alice", "grafana", "root")] == [403, 403, 404]
            assert await status("alice", "POST", "/generate/") == 307
            answer = await cluster.client.get("/metrics", headers=keys.bearer("alice"))
            assert answer.json() == {"message": "this asks for an API key of scope admin or monitor"}

    run(main())


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Authorization": "Bearer {key}"}, 200),
        ({"authorization": "bearer   {key} "}, 200),
        ({"X-API-Key": "{key}"}, 200),
        ({"Authorization": "Basic eDp5", "X-API-Key": "{key}"}, 200),
        ({"Authorization": "Bearer wrong", "X-API-Key": "{key}"}, 401),
        ({"Authorization": "{key}"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer {key}x"}, 401),
        ({"Authorization": "Bearer {hash}"}, 401),
        ({"X-API-Key": ""}, 401),
        ({"Cookie": "api_key={key}"}, 401),
    ],
)
def test_ways_to_show_a_key(settings: Settings, keys: KeyFile, headers: dict[str, str], code: int) -> None:
    key = keys.keys["alice"]
    filled = {name: value.format(key=key, hash=hash_of(key)) for name, value in headers.items()}

    async def main() -> None:
        async with fake_cluster(keys.settings(settings), takes_jobs=False) as cluster:
            answer = await cluster.client.get("/get_model_name", headers=filled)
            assert answer.status_code == code
            assert (await cluster.client.get(f"/get_model_name?api_key={key}")).status_code == 401

    run(main())


def test_the_record_knows_its_owner(settings: Settings, keys: KeyFile) -> None:
    async def main() -> None:
        async with fake_cluster(keys.settings(settings)) as cluster:
            cluster.script = cluster.length_script(" AI")
            for owner in ("alice", "root"):
                answer = await cluster.post("/generate", PROMPT, headers=keys.bearer(owner) | {"X-Request-Id": owner})
                assert answer.status_code == 200
                record = await cluster.broker.request_reader.record(owner)
                assert record is not None and record.owner == owner

    run(main())


def test_without_keys_all_is_open(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script(" AI")
            answer = await cluster.post("/generate", PROMPT, headers={"X-Request-Id": "x", "X-API-Key": "whatever"})
            assert answer.status_code == 200
            record = await cluster.broker.request_reader.record("x")
            assert record is not None and record.owner == ""
            assert (await cluster.client.get("/metrics")).status_code == 200

    run(main())


def test_a_revoked_key_is_refused_by_a_running_server(settings: Settings, keys: KeyFile) -> None:
    async def main() -> None:
        async with fake_cluster(keys.settings(settings), takes_jobs=False) as cluster:

            async def code() -> int:
                return (await cluster.client.get("/get_model_name", headers=keys.bearer("alice"))).status_code

            assert await code() == 200
            disable_key(keys.path, "alice")

            async def is_refused() -> bool:
                return await code() == 401

            await until(is_refused, CHECK_S + 1)

    run(main())


def test_a_websocket_does_not_get_past(settings: Settings, keys: KeyFile) -> None:
    async def main() -> None:
        async with fake_cluster(keys.settings(settings), takes_jobs=False) as cluster:
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            async def receive() -> Any:
                return {"type": "websocket.connect"}

            scope = {"type": "websocket", "path": "/health", "query_string": b"", "headers": []}
            await cluster.app(scope, receive, send)
            assert sent == [{"type": "websocket.close", "code": 1008}]

    run(main())


def test_a_missing_key_file_stops_the_start(settings: Settings, tmp_path: Path) -> None:
    security = SecuritySettings(keys_file=tmp_path / "none")
    with pytest.raises(KeyFileError, match="none: No such file"):
        run(serve(settings.model_copy(update={"security": security})))


@pytest.mark.parametrize(
    ("host", "has_keys", "times"), [("127.0.0.1", False, 0), ("0.0.0.0", False, 1), ("0.0.0.0", True, 0)]
)
def test_an_open_server_says_so_once(
    settings: Settings,
    keys: KeyFile,
    host: str,
    has_keys: bool,
    times: int,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = keys.settings(settings) if has_keys else settings
    port = free_port()
    chosen = chosen.model_copy(update={"api": chosen.api.model_copy(update={"host": host, "port": port})})

    async def main() -> None:
        async with fake_cluster(settings), httpx.AsyncClient() as client:
            serving = asyncio.create_task(serve(chosen))

            async def answers() -> bool:
                try:
                    return (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(answers)
            os.kill(os.getpid(), signal.SIGTERM)
            await serving

    caplog.set_level(logging.WARNING)
    run(main())
    said = caplog.text + "".join(capsys.readouterr())
    assert said.count("api_is_open") == times


def test_what_is_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "", "10.0.0.1", "example.org"))
