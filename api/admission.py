"""From a request's JSON to an admitted GenerationRequest: everything that can be refused is refused here.

Knows LightLLM's envelope, the parameters and the cluster's limits; writes nothing to Redis. All of it happens before
the first byte of an answer. What OpenAI's routes make of their JSON is admitted by `admit`, too.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from msgspec import structs
from starlette.requests import Request

from api.answers import GENERATE, GENERATE_STREAM, GET_SCORE, TGI_GENERATE, TGI_GENERATE_STREAM
from api.errors import BodyTooLarge, WrongModel
from api.forecast import Asked
from api.health import largest_request_tokens, needed_roles
from api.image_reader import keep_images
from api.image_sources import ImageSource, read_multimodal
from api.key_lease import lease_of
from api.parameters import MAX_SEED, Parameters, parse_parameters
from api.resuming import DETACHED, is_detached
from api.services import Services
from api.terms import read_priority, read_timeout_s
from api.tgi import from_tgi, is_tgi
from broker.deadline import now_ms
from messages import (
    AnswerParams,
    GenerationRequest,
    InvalidRequest,
    NoWorker,
    OutputParams,
    Role,
    SamplingParams,
    WorkerState,
    WorkerStatus,
)
from observability.tracing import valid_traceparent
from settings import ApiSettings

Body = dict[str, Any]

TRACEPARENT = "traceparent"  # W3C's header


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a route has read of its request's JSON, in terms of ours."""

    sampling: SamplingParams
    output: OutputParams
    answer: AnswerParams
    n: int = 1
    add_special_tokens: bool = True
    kind: Literal["generate", "score"] = "generate"
    fills_context: bool = False  # as many tokens as there is room for; `sampling.max_new_tokens` says nothing then
    images: Sequence[ImageSource] = ()  # of the prompt, which is the only one


async def read_body(request: Request, max_body_bytes: int) -> Body:
    """The JSON object of the body. Raises BodyTooLarge, InvalidRequest."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise BodyTooLarge(f"request body has {declared} bytes, at most {max_body_bytes} are allowed")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_body_bytes:
            raise BodyTooLarge(f"request body has more than {max_body_bytes} bytes")
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(str(error)) from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"request body must be a JSON object, got {type(body).__name__}")
    return body


def required(body: Body, key: str) -> Any:
    """`body[key]`. Raises InvalidRequest with LightLLM's words, which are the repr of the key."""
    if key not in body:
        raise InvalidRequest(repr(key))
    return body[key]


def read_parameters(body: Body, services: Services, *, is_required: bool = True) -> Parameters:
    """The checked `parameters` of `body`. Raises InvalidRequest."""
    raw = required(body, "parameters") if is_required else body.get("parameters") or {}
    if not isinstance(raw, Mapping):
        raise InvalidRequest(f"parameters must be an object, got {type(raw).__name__}")
    return parse_parameters(raw, services.facts.defaults, services.settings.api, services.facts.vocab_size, draw_seed)


def draw_seed() -> int:
    """A seed for a request that gives none."""
    return secrets.randbelow(MAX_SEED)


async def admit_generate(
    request: Request, body: Body, services: Services, *, is_stream: bool = False
) -> GenerationRequest:
    """A request of /generate or /generate_stream. Raises InvalidRequest, WrongModel, NoWorker, TooManyRequests,
    Refused, QueueFull."""
    prompt = required(body, "inputs")
    as_tgi = is_tgi(request, services.settings.api)
    if as_tgi:
        body = from_tgi(body)
    parameters = read_parameters(body, services)
    if is_stream and parameters.n != 1:
        raise InvalidRequest("stream api only support best_of == 1")
    images = read_multimodal(body)
    services.images.check(images)
    check_generates(services)
    routes = (TGI_GENERATE, TGI_GENERATE_STREAM) if as_tgi else (GENERATE, GENERATE_STREAM)
    answer = AnswerParams(routes[is_stream], parameters.return_details and (as_tgi or not is_stream))
    wanted = Wanted(
        parameters.sampling, parameters.output, answer, parameters.n, parameters.add_special_tokens, images=images
    )
    (admitted,) = await admit(services, request, [prompt], wanted)
    return admitted


def check_generates(services: Services) -> None:
    """Raises WrongModel for one that does not."""
    if services.facts.is_reward:
        raise WrongModel(f"{services.facts.name} is a reward model, it only serves /get_score")


async def admit_score(request: Request, body: Body, services: Services) -> GenerationRequest:
    """A request of /get_score; its parameters are never read. Raises as `admit_generate`."""
    prompt = required(body, "chat")
    services.images.check(read_multimodal(body))
    if not services.facts.is_reward:
        raise WrongModel(f"{services.facts.name} is not a reward model, it does not serve /get_score")
    sampling = SamplingParams(seed=0, max_new_tokens=1)
    wanted = Wanted(sampling, OutputParams(), AnswerParams(GET_SCORE), kind="score")
    (admitted,) = await admit(services, request, [prompt], wanted)
    return admitted


async def admit(
    services: Services, request: Request, prompts: Sequence[object], wanted: Wanted
) -> list[GenerationRequest]:
    """A request for each prompt, a string or a list of ids; the bytes of their images are `take_images(request.scope)`.
    Raises as `admit_generate`."""
    arrived_ms, n = now_ms(), wanted.n
    priority, timeout_s = read_priority(request.headers), read_timeout_s(request.headers, services.settings.api)
    await services.gate.check(Asked(priority, n * len(prompts), 0, timeout_s))
    if wanted.sampling.grammar is not None:
        await services.grammars.check(wanted.sampling.grammar)
    workers = await services.view.workers()
    limit = token_limit(services, workers)
    token_ids = [await tokenize(prompt, wanted.add_special_tokens, limit, services) for prompt in prompts]
    prompts_read = [await services.images.illustrate(ids, wanted.images) for ids in token_ids]
    token_ids = [one.token_ids for one in prompts_read]
    samplings = [_fitting(wanted, ids, limit, services.settings.api) for ids in token_ids]
    check_workers(services, {worker.role for worker in workers})
    request_id = request.scope["pdq.request_id"]
    request_ids = [request_id] if len(prompts) == 1 else [f"{request_id}-{part}" for part in range(len(prompts))]
    if len(prompts) > 1 and is_detached(request):
        raise InvalidRequest(f"{DETACHED} is for requests of one prompt, this one has {len(prompts)}")
    if (lease := lease_of(request.scope)) is not None:
        most = max(sampling.max_new_tokens for sampling in samplings)
        request_ids = await lease.reserve(request_ids, sum(map(len, token_ids)), most, n)
    if wanted.images:
        keep_images(request.scope, prompts_read[0].images)
    return [
        GenerationRequest(
            request_id=request_id,
            prompt_token_ids=one.token_ids,
            images=one.refs,
            sampling=sampling,
            output=wanted.output,
            n=n,
            kind=wanted.kind,
            api_id=services.api_id,
            created_ms=arrived_ms,
            owner=owner_of(request),
            priority=priority,
            deadline_ms=arrived_ms + math.ceil(timeout_s * 1000) if timeout_s else 0,
            is_detached=is_detached(request),
            answer=wanted.answer,
            trace=valid_traceparent(request.headers.get(TRACEPARENT, "")),
        )
        for request_id, one, sampling in zip(request_ids, prompts_read, samplings, strict=True)
    ]


def token_limit(services: Services, workers: Sequence[WorkerStatus]) -> int:
    """Most tokens, prompt and output together, that the cluster takes."""
    ready = [worker for worker in workers if worker.state == WorkerState.READY]
    return largest_request_tokens(
        ready, services.settings.model.max_total_tokens, services.facts.max_position_embeddings
    )


def _fitting(wanted: Wanted, token_ids: Sequence[int], limit: int, settings: ApiSettings) -> SamplingParams:
    """The sampling for a prompt of these ids. Raises InvalidRequest for one that is not to be had."""
    sampling = wanted.sampling
    if not token_ids:
        raise InvalidRequest("prompt_ids is empty")
    if wanted.fills_context:
        sampling = structs.replace(sampling, max_new_tokens=max(1, limit - len(token_ids)))
    if len(token_ids) + sampling.max_new_tokens > limit:
        raise InvalidRequest(
            f"the input prompt token len {len(token_ids)} + max_new_tokens {sampling.max_new_tokens} > {limit}"
        )
    if sampling.num_prompt_logprobs is not None:
        listed = len(token_ids) * (1 + sampling.num_prompt_logprobs)
        if listed > settings.max_prompt_logprobs:
            raise InvalidRequest(
                f"{len(token_ids)} prompt tokens with {1 + sampling.num_prompt_logprobs} logprobs each are {listed} "
                f"logprobs, at most {settings.max_prompt_logprobs} are allowed"
            )
    return sampling


def owner_of(request: Request) -> str:
    """The id of the API key that the request came with; empty where no keys are asked for."""
    owner: str = request.scope.get("pdq.owner", "")
    return owner


def check_workers(services: Services, registered: set[Role]) -> None:
    """Refuse at once when a role has nobody and nobody is on the way. Raises NoWorker.

    A role that was filled a moment ago will be again, most likely; with a worker of it registered (loading after a
    crash), the request may wait as long as one that was already here.
    """
    settings = services.settings
    for role in needed_roles(services.facts.is_reward):
        grace_s = settings.api.no_worker_timeout_s if role in registered else settings.queue.lease_s
        if services.view.absent_s(role) > grace_s:
            raise NoWorker(f"Server is busy, no {role} worker is ready, please try again later (Status code: 503)")


async def tokenize(prompt: object, add_special_tokens: bool, limit: int, services: Services) -> list[int]:
    """The token ids of `prompt`, a string or a list of ids. Raises InvalidRequest."""
    if isinstance(prompt, str):
        # No tokenizer makes fewer tokens than this; checked first, so that a huge prompt costs nothing.
        if len(prompt) > limit * services.tokenizer.longest_token_chars:
            raise InvalidRequest(f"the input prompt of {len(prompt)} characters has more than {limit} tokens")
        return await services.tokenizer.encode(prompt, add_special_tokens)
    if prompt is None or isinstance(prompt, int | float):
        raise InvalidRequest(f"'{type(prompt).__name__}' object is not iterable")
    if isinstance(prompt, list) and len(prompt) > limit:  # before the ids are looked at one by one
        raise InvalidRequest(f"the input prompt of {len(prompt)} ids has more than {limit} tokens")
    if not isinstance(prompt, list) or not all(type(token_id) is int for token_id in prompt):
        raise InvalidRequest(f"prompt format error, get type{type(prompt)}")
    if any(token_id >= services.facts.vocab_size for token_id in prompt):
        raise InvalidRequest("prompt List[int] format contain id > vocab_size")
    if any(token_id < 0 for token_id in prompt):
        raise InvalidRequest("prompt List[int] format contain id < 0")
    return prompt
