"""The images of prompts: fetched from Redis and encoded when a prompt is about to be computed.

Beside the steps of other prompts, and only what neither the KV in the pool nor the encoder's cache has already. An
image that several prompts wait for is encoded once. Knows the broker and the encoder; knows no blocks and no steps.
"""

import asyncio

from torch import Tensor

from broker.client import Broker
from engine.image_encoder import ImageEncoder
from engine.sequence import Sequence
from messages import RequestError, WorkerFailed


class Pictures:
    """One per worker."""

    def __init__(self, broker: Broker, encoder: ImageEncoder) -> None:
        self._broker, self._encoder = broker, encoder
        self._encoding: dict[bytes, asyncio.Future[Tensor]] = {}  # by digest; on the event loop alone

    async def open(self, request_id: str, sequence: Sequence) -> RequestError | None:
        """Give the sequence the features of its images; the reason where one cannot be had. Raises RedisError."""
        wanted = list(dict.fromkeys(image.digest for image in sequence.images_to_compute))
        features = {digest: known for digest in wanted if (known := self._encoder.known(digest)) is not None}
        missing = [digest for digest in wanted if digest not in features]
        found = await self._broker.requests.images(request_id, missing)
        if len(found) < len(missing):
            # It has ended, and the loop will hear of it; or Redis has lost it.
            return WorkerFailed(f"{len(missing) - len(found)} images of the prompt are no longer there")
        try:
            for digest, data in found.items():
                features[digest] = await self._encoded(digest, data)
        except RequestError as error:
            return error
        sequence.image_features = features
        return None

    async def _encoded(self, digest: bytes, data: bytes) -> Tensor:
        if (known := self._encoder.known(digest)) is not None:
            return known
        if digest not in self._encoding:
            encoding = asyncio.wrap_future(self._encoder.encode(data))
            self._encoding[digest] = encoding
            encoding.add_done_callback(lambda _: self._encoding.pop(digest))
        features = await asyncio.shield(self._encoding[digest])
        self._encoder.keep(digest, features)
        return features
