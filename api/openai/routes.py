"""OpenAI's routes, and /tokenize, /detokenize and /tokenizer_info, which other servers of its API have beside them.

Thin: parameters and conversations are read here, admission, generation and relay are those of every other route. The
one model that is served is the only one that can be asked for; a request that names none means it.
"""

from dataclasses import replace

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.admission import Body, Wanted, admit, check_generates, draw_seed, read_body, token_limit, tokenize
from api.errors import BadField, UnknownModel
from api.event_stream import EventStream
from api.generation import Departure, Generation
from api.image_reader import take_images
from api.openai.conversation import read_conversation
from api.openai.fields import flag
from api.openai.parameters import Reading, chat_wanted, completion_wanted
from api.openai.prompts import read_prompts
from api.openai.tool_parser import OPENINGS
from api.openai.unsupported import check_supported
from api.resuming import SSE_IDS, wants_ids
from api.services import Services, services_of
from api.whole_answer import whole_answer

router = APIRouter()

MAX_COUNTED_TOKENS = 1 << 24  # /tokenize only counts; the body's size is its bound


@router.post("/v1/completions", response_model=None)
async def completions(request: Request) -> Response:
    """What comes after a prompt, or after each of several."""
    services = services_of(request)
    body = await _body(request, services)
    wanted = completion_wanted(body, _reading(services))
    prompts = read_prompts(body, services.settings.api.max_prompts)
    return await _answer(request, services, prompts, wanted)


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(request: Request) -> Response:
    """The next message of a conversation."""
    services = services_of(request)
    body = await _body(request, services, is_chat=True)
    wanted = chat_wanted(body, _reading(services))
    conversation = read_conversation(body, reads_images=services.images.reads_images)
    services.images.check(conversation.images)
    prompt = await services.chat.render(conversation)
    return await _answer(request, services, [prompt], replace(wanted, images=conversation.images))


@router.get("/v1/models", response_model=None)
async def models(request: Request) -> Response:
    """The one model, in a list."""
    return _json({"object": "list", "data": [await _model(services_of(request))]})


@router.get("/v1/models/{model:path}", response_model=None)
async def model(request: Request, model: str) -> Response:
    """The one model, if that is its name."""
    services = services_of(request)
    _check_model(model, services)
    return _json(await _model(services))


@router.post("/tokenize", response_model=None)
async def tokenize_text(request: Request) -> Response:
    """The ids of a prompt, or of a conversation as the template writes it."""
    services = services_of(request)
    body = await _body(request, services, is_chat=True)
    is_chat = body.get("messages") is not None
    text, images = body.get("prompt"), []
    if is_chat:
        conversation = read_conversation(body, reads_images=services.images.reads_images)
        text, images = await services.chat.render(conversation), conversation.images
    if not isinstance(text, str):
        raise BadField("prompt must be a string, or messages a conversation", "prompt")
    special = flag(body, "add_special_tokens", not is_chat)
    token_ids = await tokenize(text, special, MAX_COUNTED_TOKENS, services)
    token_ids = (await services.images.illustrate(token_ids, images)).token_ids
    names = [services.tokenizer.names.text(one) for one in token_ids] if flag(body, "return_token_strs") else None
    limit = token_limit(services, await services.view.workers())
    return _json({"count": len(token_ids), "max_model_len": limit, "tokens": token_ids, "token_strs": names})


@router.get("/tokenizer_info", response_model=None)
async def tokenizer_info(request: Request) -> Response:
    """The special tokens and the chat template, for who writes prompts himself."""
    template = services_of(request).chat.template
    return _json({**template.special_tokens, "chat_template": template.source})


@router.post("/detokenize", response_model=None)
async def detokenize(request: Request) -> Response:
    """The text of ids."""
    services = services_of(request)
    body = await _body(request, services)
    token_ids = body.get("tokens")
    if not isinstance(token_ids, list):
        raise BadField("tokens must be a list of ids", "tokens")
    token_ids = await tokenize(token_ids, False, MAX_COUNTED_TOKENS, services)
    return _json({"prompt": services.tokenizer.text(token_ids, skip_special_tokens=False)})


async def _answer(request: Request, services: Services, prompts: list[object], wanted: Wanted) -> Response:
    check_generates(services)
    is_stream = wanted.answer.route.endswith("stream")
    with_ids = is_stream and wants_ids(request)
    if with_ids and wanted.n * len(prompts) > 1:
        raise BadField(f"{SSE_IDS} is for streams of one choice, this one has {wanted.n * len(prompts)}", "n")
    admitted = await admit(services, request, prompts, wanted)
    if not is_stream:
        return await whole_answer(request, admitted, services)
    departure = Departure.LINGER if with_ids or admitted[0].is_detached else Departure.CANCEL
    images = take_images(request.scope)
    generations = [Generation(services, each, departure, images=images) for each in admitted]
    return EventStream(generations, services, with_ids=with_ids, keep_alive_s=services.settings.api.keep_alive_s)


async def _body(request: Request, services: Services, *, is_chat: bool = False) -> Body:
    """The JSON object of the body, if all of it can be honoured. Raises BadField, UnknownModel, as `read_body`."""
    body = await read_body(request, services.settings.api.max_body_bytes)
    name = body.get("model")
    if name is not None and not isinstance(name, str):
        raise BadField(f"model must be a string, got {type(name).__name__}", "model")
    if name:
        _check_model(name, services)
    check_supported(body, is_chat=is_chat)
    return body


def _check_model(name: str, services: Services) -> None:
    if name != services.facts.name:
        raise UnknownModel(f"the model {name[:200]!r} does not exist; {services.facts.name!r} is served here")


def _reading(services: Services) -> Reading:
    limits, pieces = services.settings.api, services.tokenizer.pieces
    style = services.chat.template.tool_style if limits.tool_style == "auto" else limits.tool_style
    has_special_tags = style == "hermes" and OPENINGS[style] in pieces.special_texts
    return Reading(services.facts.defaults, limits, services.facts.vocab_size, draw_seed, style, has_special_tags)


async def _model(services: Services) -> dict[str, object]:
    return {
        "id": services.facts.name,
        "object": "model",
        "created": services.started_s,
        "owned_by": "pdq",
        "max_model_len": token_limit(services, await services.view.workers()),
    }


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
