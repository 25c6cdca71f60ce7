"""Coming back to a stream: at any process, after any token, to the bytes that the first connection would have sent."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from api.attendance import attend
from api.services import running
from broker.choice import Append
from messages.job import Phase
from messages.request import GenerationRequest, SamplingParams
from messages.token_event import FinishReason, TokenEvent
from settings.loading import Settings
from tests.api.fake_cluster import FakeCluster, fake_cluster, run, until

PROMPT = "What is AI?"
TEXT = "one STOP two three"
IDS = {"X-SSE-Ids": "true"}


def split(content: bytes) -> list[tuple[int, bytes]]:
    """(id, the rest) of every event."""
    events = content.removesuffix(b"\n\n").split(b"\n\n") if content else []
    lines = [event.split(b"\n") for event in events]
    assert all(len(pair) == 2 and pair[0].startswith(b"id: ") for pair in lines), content
    return [(int(pair[0].removeprefix(b"id: ")), pair[1]) for pair in lines]


def asking(**parameters: Any) -> dict[str, Any]:
    return {"inputs": PROMPT, "parameters": {"max_new_tokens": 100} | parameters}


async def resume(cluster: FakeCluster, request_id: str, after: int) -> httpx.Response:
    return await cluster.client.get(f"/requests/{request_id}/stream", headers={"Last-Event-ID": str(after)})


async def is_finished(cluster: FakeCluster, request_id: str) -> bool:
    return await cluster.broker.request_reader.is_finished(request_id, 0)


def with_stream(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"stream": settings.stream.model_copy(update=changes)})


class Words:
    """Says the tokens of a text one by one, as it is told to."""

    def __init__(self, cluster: FakeCluster, text: str = TEXT) -> None:
        self.events = cluster.events([cluster.ids(character)[0] for character in text])
        self.allowed = asyncio.Semaphore(0)
        self.num_refused = 0
        cluster.script = self.script

    def say(self, count: int) -> None:
        for _ in range(count):
            self.allowed.release()

    async def script(self, request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
        for event in self.events:
            await self.allowed.acquire()
            yield event


class Reader:
    """A client on a socket of its own, that may leave at any moment."""

    def __init__(self, port: int) -> None:
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10)
        self.got = b""

    async def open(self, method: str, path: str, **more: Any) -> None:
        self.answer = await self.client.send(self.client.build_request(method, path, **more), stream=True)
        assert self.answer.status_code == 200
        self.chunks = self.answer.aiter_raw()

    async def read(self, count: int) -> list[tuple[int, bytes]]:
        """What came, once it is `count` events."""
        while self.got.count(b"\n\n") < count:
            self.got += await anext(self.chunks)
        return split(self.got)

    async def leave(self) -> None:
        await self.answer.aclose()
        await self.client.aclose()


# -- the same bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [{}, {"stop_sequences": ["STOP"]}, {"stop_sequences": ["three!"]}])
def test_an_ended_stream_can_be_resumed_after_every_event(settings: Settings, parameters: dict[str, Any]) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as first, fake_cluster(settings, takes_jobs=False) as second:
            Words(first).say(len(TEXT))
            answer = await first.post("/generate_stream", asking(**parameters), headers=IDS | {"X-Request-Id": "r"})
            assert answer.headers["x-request-id"] == "r"
            events = split(answer.content)
            assert [index for index, _ in events] == list(range(len(events)))
            for after in range(-1, len(events) - 1):
                again = await resume(second, "r", after)
                assert again.headers["content-type"] == "text/event-stream; charset=utf-8"
                assert split(again.content) == events[after + 1 :]
            for after in (len(events) - 1, len(events), 1000):
                over = await resume(second, "r", after)  # on which an EventSource stops coming back
                assert (over.status_code, over.content) == (204, b"")

    run(main())


def test_the_ids_are_the_only_difference(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script(TEXT)
            plain = await cluster.post("/generate_stream", asking())
            with_ids = await cluster.post("/generate_stream", asking(), headers=IDS)
            assert b"".join(frame + b"\n\n" for _, frame in split(with_ids.content)) == plain.content

    run(main())


def test_a_stop_that_a_dead_process_saw_but_did_not_tell(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as first, fake_cluster(settings, takes_jobs=False) as second:
            Words(first).say(len(TEXT))
            parameters: dict[str, Any] = {"stop_sequences": ["STOP"]}
            headers = IDS | {"X-Request-Id": "undisturbed"}
            undisturbed = split((await first.post("/generate_stream", asking(**parameters), headers=headers)).content)
            await first.stop()
            told = await first.broker.request_reader.record("undisturbed")
            assert told is not None
            # The same request, of which nobody told Redis that it is over: the workers go on beyond the stop.
            request = GenerationRequest(
                "cut", told.prompt_token_ids, told.sampling, told.output, api_id="gone", answer=told.answer
            )
            await first.broker.requests.create(request, 10)
            (entry,) = await first.broker.prefill_queue.take("prefill-0", 1)
            taken = await first.broker.requests.take(entry.job, Phase.PREFILLING)
            assert taken is not None
            events = Words(first).events[:-1]
            appends = [Append("cut", 0, taken.epoch, index, event, "gone") for index, event in enumerate(events)]
            assert all(await first.broker.requests.append(appends[:12]))
            assert split((await resume(second, "cut", 3)).content) == undisturbed[4:]
            assert await second.last_event("cut") == TokenEvent(finish_reason=FinishReason.STOP)
            assert await first.broker.requests.append(appends[12:13]) == [False]
            assert (await resume(second, "cut", 7)).status_code == 204
            body = (await second.client.get("/requests/cut")).json()
            assert (body["result"]["generated_text"], body["result"]["count_output_tokens"]) == (["one "], 8)

    run(main())


# -- live --------------------------------------------------------------------------------------------------------------


def test_two_readers_at_once_are_both_right_and_both_quick(settings: Settings) -> None:
    settings = with_stream(settings, recheck_s=1000)  # whatever comes, comes by the relay

    async def main() -> None:
        async with (
            fake_cluster(settings) as one,
            fake_cluster(settings, takes_jobs=False) as two,
            one.serving() as port,
            two.serving() as other_port,
        ):
            words = Words(one)
            first, second = Reader(port), Reader(other_port)
            words.say(5)
            await first.open("POST", "/generate_stream", json=asking(), headers={"X-Request-Id": "r"} | IDS)
            await first.read(5)
            await second.open("GET", "/requests/r/stream", headers={"Last-Event-ID": "1"})
            await second.read(3)
            words.say(1)
            await first.read(6)
            assert (await second.read(4))[-1] == (await first.read(6))[-1]
            words.say(100)
            whole, rest = await first.read(len(TEXT)), await second.read(len(TEXT) - 2)
            assert whole[2:] == rest
            assert [index for index, _ in whole] == list(range(len(TEXT)))
            await first.leave()
            await second.leave()

    run(main())


def test_a_plain_client_that_leaves_does_not_take_the_request_from_a_reader_that_came(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster, cluster.serving() as port:
            words = Words(cluster)
            first, second = Reader(port), Reader(port)
            words.say(1)
            await first.open("POST", "/generate_stream", json=asking(), headers={"X-Request-Id": "r"})
            await second.open("GET", "/requests/r/stream")
            await first.leave()

            async def has_left() -> bool:
                return cluster.services.relay.num_subscriptions == 1

            await until(has_left)
            words.say(100)
            assert len(await second.read(len(TEXT))) == len(TEXT)
            await second.leave()

    run(main())


def test_a_client_that_comes_back_in_time_loses_nothing(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster, cluster.serving() as port:
            words = Words(cluster)
            first, second = Reader(port), Reader(port)
            words.say(3)
            await first.open("POST", "/generate_stream", json=asking(), headers={"X-Request-Id": "r"} | IDS)
            begun = await first.read(3)
            await first.leave()

            async def has_left() -> bool:
                return cluster.services.readings.request_ids == []

            await until(has_left)
            words.say(3)
            # As an EventSource does: the address is that of its first request, the header says where it is.
            await second.open("GET", "/requests/r/stream?after=0", headers={"Last-Event-ID": "2"})
            words.say(100)
            events = begun + await second.read(len(TEXT) - 3)
            assert [index for index, _ in events] == list(range(len(TEXT)))
            texts = [json.loads(frame.removeprefix(b"data:"))["token"]["text"] for _, frame in events]
            assert "".join(texts) == TEXT
            await second.leave()

    run(main())


# -- nobody reads ------------------------------------------------------------------------------------------------------


def test_a_client_that_does_not_come_back_in_time_is_cancelled(settings: Settings) -> None:
    settings = with_stream(settings, reconnect_s=0.4)

    async def main() -> None:
        async with fake_cluster(settings) as cluster, cluster.serving() as port, running(attend(cluster.services)):
            words, reader = Words(cluster), Reader(port)
            words.say(2)
            await reader.open("POST", "/generate_stream", json=asking(), headers={"X-Request-Id": "r"} | IDS)
            await reader.read(2)
            await asyncio.sleep(1)  # two leases: they are renewed
            assert not await is_finished(cluster, "r")
            await reader.leave()
            left_at = asyncio.get_running_loop().time()
            await until(lambda: is_finished(cluster, "r"))
            assert 0.35 < asyncio.get_running_loop().time() - left_at < 1.5
            assert await cluster.last_event("r") == TokenEvent(finish_reason=FinishReason.ABORT)

    run(main())


def test_after_a_start_clients_have_time_to_come_back(settings: Settings) -> None:
    settings = with_stream(settings, reconnect_s=0.4)

    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster:
            request = GenerationRequest("r", [1], SamplingParams(seed=0), api_id="gone")
            await cluster.broker.requests.create(request, 10)
            await cluster.broker.redis.zadd(cluster.broker.keys.reader_leases(), {"r": 1, "no-record": 1})
            began = asyncio.get_running_loop().time()
            async with running(attend(cluster.services)):
                await until(lambda: is_finished(cluster, "r"))
            assert asyncio.get_running_loop().time() - began > 0.35

            async def is_forgotten() -> bool:
                return not await cluster.broker.redis.exists(cluster.broker.keys.reader_leases())

            await until(is_forgotten)

    run(main())


@pytest.mark.parametrize("is_orphan", [False, True], ids=["client-left", "process-died"])
def test_a_detached_request_goes_on_and_still_ends_at_its_stop(settings: Settings, is_orphan: bool) -> None:
    settings = with_stream(settings, reconnect_s=0.2)

    async def main() -> None:
        async with fake_cluster(settings) as cluster, cluster.serving() as port, AsyncExitStack() as adopting:
            if is_orphan:  # else the process that lost the client sees to it itself
                await adopting.enter_async_context(running(attend(cluster.services)))
            words = Words(cluster)
            headers = {"X-Request-Id": "r", "X-Detached": "true"}
            async with fake_cluster(settings, takes_jobs=False) as other, other.serving() as other_port:
                reader = Reader(other_port if is_orphan else port)
                words.say(2)
                body = asking(stop_sequences=["STOP"])
                await reader.open("POST", "/generate_stream", json=body, headers=headers)
                await anext(reader.chunks)
                assert b"id:" not in reader.got
                await reader.leave()
            await asyncio.sleep(0.6)  # it is cancelled by nobody
            words.say(8)
            await until(lambda: is_finished(cluster, "r"))
            assert await cluster.last_event("r") == TokenEvent(finish_reason=FinishReason.STOP)
            body = (await cluster.client.get("/requests/r")).json()
            assert body["result"]["generated_text"] == ["one "]
            assert body["is_detached"]

    run(main())


def sampling_of(cluster: FakeCluster) -> Any:
    from messages.request import SamplingParams

    return SamplingParams(seed=0)
