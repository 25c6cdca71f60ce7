"""From where a prompt's images are to what a request says of them: fetched, checked, and as tokens of the prompt.

Nothing is fetched for a prompt whose placeholders do not fit its images. Pictures are decoded on threads, a few at
once, only to know that workers can and how large they are; what travels is the bytes as they came. Knows the layout of
the model's images; knows no Redis.
"""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from starlette.types import Scope

from api.cancellation import end_tasks
from api.image_fetch import fetch_image
from api.image_sources import ImageSource
from api.tokenizer import Tokenizer
from images import ImageLayout, check_places, decode_image, expanded
from messages import ImageRef, InvalidRequest
from settings import ImageSettings

_SCOPE_KEY = "pdq.images"


@dataclass(frozen=True, slots=True)
class Illustrated:
    """A prompt with the tokens of its images in place of their placeholders."""

    token_ids: list[int]
    refs: tuple[ImageRef, ...] = ()
    images: Mapping[bytes, bytes] = field(default_factory=dict)  # digest -> bytes


class ImageReader:
    """One per API process."""

    def __init__(self, layout: ImageLayout | None, tokenizer: Tokenizer, settings: ImageSettings) -> None:
        """`layout`: None where the model reads no images."""
        self._layout, self._tokenizer, self._settings = layout, tokenizer, settings
        self._turns = asyncio.Semaphore(settings.at_once)

    @property
    def reads_images(self) -> bool:
        """Whether the model does."""
        return self._layout is not None

    def check(self, sources: Sequence[ImageSource]) -> None:
        """Whether so many images may be there at all. Raises InvalidRequest."""
        if sources and self._layout is None:
            raise InvalidRequest(f"{sources[0].name}: images are not supported by this model, which reads text alone")
        most = self._settings.max_per_request
        if len(sources) > most:
            raise InvalidRequest(f"the request has {len(sources)} images, at most {most} are allowed")

    async def illustrate(self, token_ids: list[int], sources: Sequence[ImageSource]) -> Illustrated:
        """The prompt with its images. Raises InvalidRequest for what cannot be had or does not fit."""
        self.check(sources)
        layout = self._layout
        if layout is None:
            return Illustrated(token_ids)
        check_places(token_ids, layout.image_token_id, len(sources))
        if not sources:
            return Illustrated(token_ids)
        contents = await self._contents(sources)
        pictures: list[tuple[bytes, list[int]]] = []
        images: dict[bytes, bytes] = {}
        for source, content in zip(sources, contents, strict=True):
            async with self._turns:
                digest, data, (width, height) = await asyncio.to_thread(self._checked, source, content)
            pictures.append((digest, await self._tokenizer.encode(layout.text(width, height), False)))
            images[digest] = data
        ids, refs = expanded(token_ids, layout.image_token_id, pictures)
        return Illustrated(ids, refs, images)

    async def _contents(self, sources: Sequence[ImageSource]) -> list[bytes | None]:
        """The bytes of those that are fetched."""
        settings = self._settings
        fetching = {
            place: asyncio.create_task(fetch_image(source.data, source.name, settings))
            for place, source in enumerate(sources)
            if source.kind == "url"
        }
        try:
            async with asyncio.timeout(settings.fetch_timeout_s):
                fetched = await asyncio.gather(*fetching.values())
        except TimeoutError:
            raise InvalidRequest(f"the images could not be fetched within {settings.fetch_timeout_s:g} s") from None
        finally:
            await end_tasks(list(fetching.values()))
        contents = dict(zip(fetching, fetched, strict=True))
        return [contents.get(place) for place in range(len(sources))]

    def _checked(self, source: ImageSource, content: bytes | None) -> tuple[bytes, bytes, tuple[int, int]]:
        """Blocking: (digest, bytes, (width, height)) of an image that can be decoded."""
        most = self._settings.max_bytes
        if content is None:
            if len(source.data) > 4 * (most // 3 + 1):
                raise InvalidRequest(f"{source.name} has more than {most} bytes")
            try:
                content = base64.b64decode(source.data, validate=True)
            except (binascii.Error, ValueError) as error:
                raise InvalidRequest(f"{source.name} is not base64: {error}") from None
        if len(content) > most:
            raise InvalidRequest(f"{source.name} has {len(content)} bytes, at most {most} are allowed")
        try:
            size = decode_image(content, self._settings.max_pixels).size
        except InvalidRequest as error:
            raise InvalidRequest(f"{source.name}: {error}") from None
        return hashlib.sha256(content).digest(), content, size


def keep_images(scope: Scope, images: Mapping[bytes, bytes]) -> None:
    """For who creates the request that came with `scope`."""
    scope[_SCOPE_KEY] = images


def take_images(scope: Scope) -> Mapping[bytes, bytes]:
    """What `keep_images` was given, which is not kept any longer; a request without images has none."""
    images: Mapping[bytes, bytes] = scope.pop(_SCOPE_KEY, {})
    return images
