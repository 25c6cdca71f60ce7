"""The true server on a true socket: streaming, clients that leave, large heads, shutdown."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.server import serve
from errors import BrokerError, ModelError
from messages.request import GenerationRequest
from messages.token_event import FinishReason, TokenEvent
from settings.broker import RedisSettings
from settings.loading import Settings
from tests.api.fake_cluster import FakeCluster, fake_cluster, run, until

PROMPT = "What is AI?"


def head(path: str, body: bytes, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body


def asking(**parameters: Any) -> bytes:
    return json.dumps({"inputs": PROMPT, "parameters": parameters}).encode()


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


class Gate:
    """A script that says one word and then waits to be let on."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.words = cluster.ids("What is")
        self.opened = asyncio.Event()
        cluster.script = self.script

    async def script(self, request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
        yield TokenEvent(self.words[0], -1.0)
        await self.opened.wait()
        yield TokenEvent(self.words[1], -1.0, FinishReason.LENGTH)


def test_each_token_is_sent_when_it_is_there(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster, cluster.serving() as port, httpx.AsyncClient() as client:
            gate = Gate(cluster)
            url = f"http://127.0.0.1:{port}/generate_stream"
            async with client.stream("POST", url, content=asking()) as answer:
                assert answer.status_code == 200
                assert "content-length" not in answer.headers
                chunks = answer.aiter_raw()
                first = await anext(chunks)
                assert json.loads(first.removeprefix(b"data:"))["token"]["text"] == "What"
                gate.opened.set()
                rest = b"".join([chunk async for chunk in chunks])
                assert json.loads(rest.removeprefix(b"data:"))["finish_reason"] == "length"
            # The connection is in order: the next request goes over it.
            assert (await client.get(f"http://127.0.0.1:{port}/health")).json() == {"message": "Ok"}

    run(main())


@pytest.mark.parametrize(("path", "n"), [("/generate_stream", 1), ("/generate", 1), ("/generate", 3)])
def test_a_client_that_leaves_ends_every_choice(settings: Settings, path: str, n: int) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster, cluster.serving() as port:
            Gate(cluster)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head(path, asking(best_of=n), "X-Request-Id: leaver"))
            if path == "/generate_stream":
                await reader.readuntil(b"data:")
            else:

                async def is_working() -> bool:
                    return len(cluster.requests) == n

                await until(is_working)
            await closed(writer)

            async def is_aborted() -> bool:
                ends = [await cluster.last_event("leaver", choice) for choice in range(n)]
                return all(end is not None and end.finish_reason is FinishReason.ABORT for end in ends)

            await until(is_aborted, 2)
            assert cluster.services.relay.num_subscriptions == 0
            assert await cluster.broker.request_reader.loads() == []

    run(main())


def test_a_client_that_leaves_while_its_job_is_queued_ends_it(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster, cluster.serving() as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head("/generate_stream", asking(), "X-Request-Id: leaver"))

            async def is_queued() -> bool:
                return await cluster.broker.prefill_queue.depth() == 1

            await until(is_queued)
            await closed(writer)

            async def is_finished() -> bool:
                return await cluster.broker.request_reader.is_finished("leaver", 0)

            await until(is_finished, 2)

    run(main())


def test_a_head_that_is_too_large_is_cut_off(settings: Settings) -> None:
    api = settings.api.model_copy(update={"max_header_bytes": 8192})

    async def main() -> None:
        changed = settings.model_copy(update={"api": api})
        async with fake_cluster(changed) as cluster, cluster.serving() as port:
            for size, end, code in [(1000, b"\r\n\r\n", b"200"), (20_000, b"", b"400")]:
                # The second head has no end: the server must not go on collecting it.
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /health HTTP/1.1\r\nHost: test\r\nX-Large: " + b"x" * size + end)
                assert (await reader.readline()).split()[1] == code
                await closed(writer)

    run(main())


def test_many_streams_at_once_keep_to_themselves(settings: Settings) -> None:
    queue = settings.queue.model_copy(update={"max_waiting": 1000})

    async def main() -> None:
        changed = settings.model_copy(update={"queue": queue})
        async with fake_cluster(changed) as cluster, cluster.serving() as port:

            async def script(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
                for event in cluster.events(request.prompt_token_ids):
                    yield event

            cluster.script = script  # says the prompt again
            texts = [f"What is {number} and {number * 7}?" for number in range(40)]

            async def ask(client: httpx.AsyncClient, text: str) -> str:
                body = {"inputs": text, "parameters": {}}
                answer = await client.post(f"http://127.0.0.1:{port}/generate_stream", json=body)
                frames = answer.text.removesuffix("\n\n").split("\n\n")
                return "".join(json.loads(frame.removeprefix("data:"))["token"]["text"] for frame in frames)

            async with httpx.AsyncClient(timeout=30) as client:
                assert await asyncio.gather(*(ask(client, text) for text in texts)) == texts

    run(main())


def test_sigterm_lets_an_open_stream_finish(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            gate = Gate(cluster)
            port = free_port()
            api = settings.api.model_copy(update={"port": port})
            serving = asyncio.create_task(serve(settings.model_copy(update={"api": api})))

            async def is_up() -> bool:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    return False
                await closed(writer)
                return True

            await until(is_up)
            async with httpx.AsyncClient() as client:
                url = f"http://127.0.0.1:{port}/generate_stream"
                async with client.stream("POST", url, content=asking()) as answer:
                    chunks = answer.aiter_raw()
                    await anext(chunks)
                    readiness = f"http://127.0.0.1:{port}/readiness"
                    assert (await client.get(readiness)).status_code == 200
                    os.kill(os.getpid(), signal.SIGTERM)

                    async def is_not_ready() -> bool:
                        return (await client.get(readiness)).status_code == 503

                    await until(is_not_ready, 0.5)
                    gate.opened.set()
                    assert b'"finished":true' in b"".join([chunk async for chunk in chunks])
            await serving  # returns; the signal is not raised again
            assert not await is_up()

    run(main())


def test_a_stream_that_outlives_the_drain_ends_in_an_error(settings: Settings) -> None:
    api = settings.api.model_copy(update={"drain_s": 0.1})

    async def main() -> None:
        async with fake_cluster(settings.model_copy(update={"api": api})) as cluster:
            Gate(cluster)
            async with httpx.AsyncClient(timeout=10) as client:
                async with cluster.serving() as port:
                    url = f"http://127.0.0.1:{port}/generate_stream"
                    request = client.build_request("POST", url, content=asking(), headers={"X-Request-Id": "long"})
                    answer = await client.send(request, stream=True)
                    chunks = answer.aiter_raw()
                    await anext(chunks)
                rest = b"".join([chunk async for chunk in chunks])
                assert rest.startswith(b'data:{"error":')
            event = await cluster.last_event("long")
            assert event == TokenEvent(finish_reason=FinishReason.ABORT)

    run(main())


def test_a_resumable_stream_that_outlives_the_drain_ends_cleanly_and_goes_on_elsewhere(settings: Settings) -> None:
    api = settings.api.model_copy(update={"drain_s": 0.1})

    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as workers:
            gate = Gate(workers)
            headers = {"X-Request-Id": "long", "X-SSE-Ids": "true"}
            async with fake_cluster(settings.model_copy(update={"api": api}), takes_jobs=False) as first:
                workers.start()
                async with httpx.AsyncClient(timeout=10) as client:
                    async with first.serving() as port:
                        url = f"http://127.0.0.1:{port}/generate_stream"
                        request = client.build_request("POST", url, content=asking(), headers=headers)
                        answer = await client.send(request, stream=True)
                        chunks = answer.aiter_raw()
                        begun = await anext(chunks)
                    assert begun.startswith(b"id: 0\ndata:")
                    assert [chunk async for chunk in chunks] == []  # the end of a whole answer, with no error before it
            assert not await workers.broker.request_reader.is_finished("long", 0)
            gate.opened.set()
            answer = await workers.client.get("/requests/long/stream", headers={"Last-Event-ID": "0"})
            assert answer.content.startswith(b"id: 1\ndata:") and b'"finished":true' in answer.content

    run(main())


def test_what_is_missing_stops_the_start(settings: Settings, tmp_path: Path) -> None:
    model = settings.model.model_copy(update={"path": "demo"})
    with pytest.raises(ModelError, match="demo"):
        run(serve(settings.model_copy(update={"model": model})))
    redis = RedisSettings(url=f"unix://{tmp_path}/none.sock", connect_timeout_s=0.1)
    with pytest.raises(BrokerError, match="none"):
        run(serve(settings.model_copy(update={"redis": redis})))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
