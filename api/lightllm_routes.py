"""LightLLM's routes for text: /generate, /generate_stream, /get_score, / and /tokens.

Thin: admission decides, generation does, frames write. No pydantic bodies here, so that no answer is ever a 422.
"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.admission import (
    Body,
    admit_generate,
    admit_score,
    read_body,
    read_parameters,
    required,
    tokenize,
)
from api.errors import error_response
from api.event_stream import EventStream
from api.frames import tokens_body
from api.generation import Departure, Generation
from api.image_reader import take_images
from api.image_sources import read_multimodal
from api.resuming import wants_ids
from api.services import Services, services_of
from api.whole_answer import whole_answer
from messages import RequestError

router = APIRouter()

MAX_COUNTED_TOKENS = 1 << 24  # /tokens only counts, so the cluster's limit does not bound it; the body's size does


@router.post("/generate", response_model=None)
async def generate(request: Request) -> Response:
    """The whole text at once."""
    services = services_of(request)
    return await _generate(request, await _body(request, services), services)


@router.post("/generate_stream", response_model=None)
async def generate_stream(request: Request) -> Response:
    """An event per token."""
    services = services_of(request)
    return await _generate_stream(request, await _body(request, services), services)


@router.post("/", response_model=None)
async def compat_generate(request: Request) -> Response:
    """/generate_stream if the body says `"stream": true`, else /generate."""
    services = services_of(request)
    body = await _body(request, services)
    if body.pop("stream", False):
        return await _generate_stream(request, body, services)
    return await _generate(request, body, services)


@router.post("/get_score", response_model=None)
async def get_score(request: Request) -> Response:
    """A reward model's score of a conversation."""
    services = services_of(request)
    admitted = await admit_score(request, await _body(request, services), services)
    return await whole_answer(request, [admitted], services)


@router.api_route("/tokens", methods=["GET", "POST"], response_model=None)
async def tokens(request: Request) -> Response:
    """How many tokens a text has."""
    services = services_of(request)
    try:
        body = await _body(request, services)
        text = required(body, "text")
        parameters = read_parameters(body, services, is_required=False)
        images = read_multimodal(body)
        services.images.check(images)
        token_ids = await tokenize(text, parameters.add_special_tokens, MAX_COUNTED_TOKENS, services)
        token_ids = (await services.images.illustrate(token_ids, images)).token_ids
    except RequestError as error:
        return error_response(request.url.path, error, prefix="error: ")
    return _json(tokens_body(len(token_ids)))


async def _generate(request: Request, body: Body, services: Services) -> Response:
    return await whole_answer(request, [await admit_generate(request, body, services)], services)


async def _generate_stream(request: Request, body: Body, services: Services) -> Response:
    with_ids = wants_ids(request)
    admitted = await admit_generate(request, body, services, is_stream=True)
    departure = Departure.LINGER if with_ids or admitted.is_detached else Departure.CANCEL
    generation = Generation(services, admitted, departure, images=take_images(request.scope))
    return EventStream([generation], services, with_ids=with_ids)


async def _body(request: Request, services: Services) -> Body:
    return await read_body(request, services.settings.api.max_body_bytes)


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
