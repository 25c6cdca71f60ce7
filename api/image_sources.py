"""Where a request's images are: read out of LightLLM's and OpenAI's JSON. Pure; nothing is fetched or decoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from api.errors import BadField
from messages import InvalidRequest

DATA_URL = "data:image/"


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image as the client gave it."""

    kind: Literal["url", "base64"]
    data: str
    name: str  # of its place in the body


def read_multimodal(body: Mapping[str, object]) -> list[ImageSource]:
    """LightLLM's `multimodal_params`. Raises InvalidRequest."""
    given = body.get("multimodal_params") or {}
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"multimodal_params must be an object, got {type(given).__name__}")
    for key, value in given.items():
        if key not in ("images", "audios"):
            raise InvalidRequest(f"MultimodalParams.__init__() got an unexpected keyword argument '{key}'")
        if key == "audios" and value:
            raise InvalidRequest("multimodal_params audios is not supported yet")
    images = given.get("images") or []
    if not isinstance(images, list):
        raise InvalidRequest(f"multimodal_params images must be a list, got {type(images).__name__}")
    return [_of_lightllm(image, f"multimodal_params images[{place}]") for place, image in enumerate(images)]


def _of_lightllm(image: object, name: str) -> ImageSource:
    if not isinstance(image, Mapping):
        raise InvalidRequest(f"{name} must be an object, got {type(image).__name__}")
    kind, data = image.get("type"), image.get("data")
    if kind not in ("url", "base64"):
        raise InvalidRequest(f"{name} has type {str(kind)[:40]!r}, url and base64 are supported")
    if not isinstance(data, str) or not data:
        raise InvalidRequest(f"{name} must have data, a string that is not empty")
    return _of_url(data, name) if kind == "url" else ImageSource("base64", data, name)


def read_part(part: Mapping[str, object], name: str) -> ImageSource:
    """A part of type image_url of an OpenAI message. Raises BadField."""
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(url, str) or not url:
        raise BadField(f"{name}.content has an image_url without a url", name)
    try:
        return _of_url(url, name)
    except InvalidRequest as error:
        raise BadField(str(error), name) from None


def _of_url(url: str, name: str) -> ImageSource:
    if not url.startswith("data:"):
        return ImageSource("url", url, name)
    head, marker, data = url.partition(";base64,")
    if not head.startswith(DATA_URL) or not marker or not data:
        raise InvalidRequest(f"{name} has a data URL that does not begin with {DATA_URL}...;base64,")
    return ImageSource("base64", data, name)
