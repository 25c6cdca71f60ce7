"""A prefill worker fetches and encodes the images that a prompt needs, once, and says why where it cannot."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

import torch
from msgspec import structs

from broker.client import Broker
from engine.continuation import sequence_of
from engine.image_encoder import ImageEncoder, load_image_encoder
from engine.sequence import Sequence
from messages import FinishReason, GenerationRequest, ImageRef, InvalidRequest, SamplingParams, TokenEvent, WorkerFailed
from prefill_worker.pictures import Pictures
from tests.conftest import OpenTestBroker
from tests.vision_models import picture, vision_model

WIDE, SMALL = picture(1, 50, 30), picture(2, 9, 9)


class Counted:
    """A real encoder, and how often it encodes."""

    def __init__(self, cache_bytes: int) -> None:
        self.encoder = load_image_encoder(
            vision_model("idefics3"), torch.float32, torch.device("cpu"), 10_000, cache_bytes, lambda line: None
        )
        self.encoded: list[bytes] = []
        encode_now = self.encoder.encode_now

        def counted(data: bytes) -> torch.Tensor:
            self.encoded.append(data)
            return encode_now(data)

        self.encoder.encode_now = counted  # type: ignore[method-assign]


def refs(*images: bytes) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(hashlib.sha256(data).digest(), 10 * place, 10) for place, data in enumerate(images))


async def created(broker: Broker, request_id: str, *images: bytes) -> Sequence:
    """The sequence of a request whose images are in Redis."""
    request = GenerationRequest(request_id, [1] * 30, SamplingParams(seed=0))
    request = structs.replace(request, images=refs(*images))
    by_digest = {image.digest: data for image, data in zip(request.images, images, strict=True)}
    await broker.requests.create(request, max_waiting=10, images=by_digest)
    return sequence_of(request, 0, [])


def run(
    open_test_broker: OpenTestBroker, encoder: ImageEncoder, test: Callable[[Broker, Pictures], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            await test(broker, Pictures(broker, encoder))

    asyncio.run(main())


def test_an_image_that_several_wait_for_is_encoded_once(open_test_broker: OpenTestBroker) -> None:
    counted = Counted(cache_bytes=1 << 20)

    async def test(broker: Broker, pictures: Pictures) -> None:
        first = await created(broker, "first", WIDE, SMALL)
        second = await created(broker, "second", WIDE)
        for failed in await asyncio.gather(pictures.open("first", first), pictures.open("second", second)):
            assert failed is None
        assert sorted(counted.encoded) == sorted([WIDE, SMALL])
        assert first.image_features is not None and second.image_features is not None
        digest = refs(WIDE)[0].digest
        assert torch.equal(first.image_features[digest], second.image_features[digest])
        await broker.requests.cancel(
            GenerationRequest("first", [], SamplingParams(seed=0)), TokenEvent(finish_reason=FinishReason.ABORT)
        )  # its images are gone, and not needed
        again = sequence_of(GenerationRequest("first", [1] * 30, SamplingParams(seed=0), images=refs(WIDE)), 0, [])
        assert await pictures.open("first", again) is None
        assert len(counted.encoded) == 2

    run(open_test_broker, counted.encoder, test)


def test_what_is_computed_already_is_not_encoded(open_test_broker: OpenTestBroker) -> None:
    counted = Counted(cache_bytes=0)

    async def test(broker: Broker, pictures: Pictures) -> None:
        sequence = await created(broker, "request", WIDE, SMALL)
        sequence.num_computed_tokens = 10  # by a cached prefix
        assert await pictures.open("request", sequence) is None
        assert counted.encoded == [SMALL]

    run(open_test_broker, counted.encoder, test)


def test_what_is_gone_or_no_picture_is_told(open_test_broker: OpenTestBroker) -> None:
    counted = Counted(cache_bytes=0)

    async def test(broker: Broker, pictures: Pictures) -> None:
        sequence = await created(broker, "request", b"no picture")
        assert isinstance(await pictures.open("request", sequence), InvalidRequest)
        gone = await pictures.open("another", sequence)
        assert isinstance(gone, WorkerFailed) and str(gone) == "1 images of the prompt are no longer there"
        assert sequence.image_features is None

    run(open_test_broker, counted.encoder, test)
