"""The OpenAPI document holds: whatever it allows, and much that it does not, is answered as it says, never by 500."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from api.app import create_app
from messages.worker_status import Role
from settings.loading import Settings
from tests.api.fake_cluster import fake_cluster, run, status


def does_not_fail(_: Any, response: Any, case: Any) -> None:
    """Not with a 500, nor another 5xx but the one that the request asked for: to be done in no time; or asks about."""
    may_be_late = "X-Request-Timeout" in (case.headers or {}) or case.path.startswith("/requests/")
    is_late = response.status_code == 504 and may_be_late
    assert response.status_code < 500 or is_late, (case.method, case.path, dict(case.headers or {}), response.text)


CHECKS = [
    does_not_fail,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]
EXAMPLES_PER_OPERATION = 25


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """The API on a socket, from a thread, and a worker that says a few words to everybody; its URL."""
    started: Future[tuple[str, Callable[[], object]]] = Future()

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script(" A few words.")
            async with cluster.serving() as port:
                started.set_result((f"http://127.0.0.1:{port}", lambda: loop.call_soon_threadsafe(stop.set)))
                while not stop.is_set():
                    for role in Role:
                        await cluster.beat(status(role))
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), 5)

    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(run, main())
        url, end = started.result(20)
        try:
            yield url
        finally:
            end()
            ended.result(20)


def test_every_operation_answers_as_documented(settings: Settings) -> None:
    # Room for all: a 503 would be right, and is not what is looked for here.
    roomy = settings.model_copy(update={"queue": settings.queue.model_copy(update={"max_waiting": 512})})
    with served(roomy) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
        names = []
        for found in schema.get_all_operations():
            operation = found.ok()
            names.append(operation.label)

            @hypothesis_settings(
                max_examples=EXAMPLES_PER_OPERATION,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def answers_as_documented(case: Any) -> None:
                case.call_and_validate(checks=CHECKS, timeout=20)

            answers_as_documented()
        assert len(names) >= 20


def test_the_document_names_bodies_answers_and_bounds(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            document = (await cluster.client.get("/openapi.json")).json()
            assert (await cluster.client.get("/openapi.json")).json() == document  # asking twice adds nothing
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    assert "422" not in operation["responses"], path
                    assert {"401", "403", "429", "503"} <= operation["responses"].keys(), (method, path)
            generate = document["paths"]["/generate"]["post"]
            body = generate["requestBody"]["content"]["application/json"]["schema"]
            assert body["required"] == ["inputs", "parameters"]
            best_of = body["properties"]["parameters"]["properties"]["best_of"]
            assert best_of["maximum"] == settings.api.max_best_of
            assert {"413", "417", "504"} <= generate["responses"].keys()
            assert json.dumps(document).count("X-Request-Timeout") >= 4

    run(main())


def test_every_route_is_described(settings: Settings) -> None:
    """A new route has a line in api/openapi.py."""

    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            document = create_app(cluster.services).openapi()
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    assert operation["responses"]["200"]["description"] != "Successful Response", (method, path)

    run(main())
