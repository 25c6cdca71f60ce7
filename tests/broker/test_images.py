"""The bytes of a request's images: there while somebody may compute it, gone with its end, whoever ends it."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from broker.client import Broker
from messages import GenerationRequest, ImageRef, InvalidRequest, Phase, QueueFull
from tests.broker.samples import ABORT, STOP, make_append, make_request
from tests.conftest import OpenTestBroker

IMAGES = {bytes([number]) * 32: bytes([number]) * 1000 for number in (1, 2)}


def illustrated(request_id: str = "request", n: int = 1) -> GenerationRequest:
    refs = tuple(ImageRef(digest, 3 * place, 3) for place, digest in enumerate(IMAGES))
    return msgspec.structs.replace(make_request(request_id, n, prompt_tokens=6), images=refs)


async def left(broker: Broker, request_id: str = "request") -> dict[bytes, bytes]:
    return await broker.requests.images(request_id, list(IMAGES))


async def by_its_worker(broker: Broker, request: GenerationRequest) -> None:
    for entry in await broker.prefill_queue.take("prefill-1", 2):
        taken = await broker.requests.take(entry.job, Phase.PREFILLING)
        assert taken is not None and taken.request == request
        assert await left(broker) == IMAGES
        assert await broker.requests.append([make_append(taken, 0, STOP)]) == [True]


async def by_stop_sequences(broker: Broker, request: GenerationRequest) -> None:
    for choice in range(request.n):
        assert await left(broker) == IMAGES
        await broker.requests.finish(request.request_id, choice, STOP)


async def by_its_client(broker: Broker, request: GenerationRequest) -> None:
    await broker.requests.cancel(request, ABORT)


@pytest.mark.parametrize("end", [by_its_worker, by_stop_sequences, by_its_client])
def test_they_go_when_the_last_choice_has_ended(
    open_test_broker: OpenTestBroker, end: Callable[[Broker, GenerationRequest], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            request = illustrated(n=2)
            await broker.requests.create(request, max_waiting=10, images=IMAGES)
            assert await left(broker) == IMAGES
            await end(broker, request)
            assert await left(broker) == {}
            assert await broker.redis.exists(broker.keys.images("request")) == 0
            assert await broker.requests.record("request") == request

    asyncio.run(main())


def test_who_is_refused_leaves_none(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.requests.create(illustrated(), max_waiting=1, images=IMAGES)
            with pytest.raises(QueueFull):
                await broker.requests.create(illustrated("second"), max_waiting=1, images=IMAGES)
            with pytest.raises(InvalidRequest, match="in use"):
                await broker.requests.create(make_request(), max_waiting=10)
            assert await left(broker) == IMAGES and await left(broker, "second") == {}

    asyncio.run(main())
