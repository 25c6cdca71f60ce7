"""From a request's JSON to an admitted GenerationRequest: everything that can be refused is refused here.

Knows LightLLM's envelope, the parameters and the cluster's limits; writes nothing to Redis. All of it happens before
the first byte of an answer.
"""

import math
import secrets
from collections.abc import Mapping
from typing import Any, Literal

import orjson
from starlette.requests import Request

from api.answers import GENERATE, GENERATE_STREAM, GET_SCORE
from api.errors import BodyTooLarge, WrongModel
from api.forecast import Asked
from api.health import largest_request_tokens, needed_roles
from api.key_lease import lease_of
from api.parameters import MAX_SEED, Parameters, parse_parameters
from api.resuming import is_detached
from api.services import Services
from api.terms import read_priority, read_timeout_s
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
)
from observability.tracing import valid_traceparent

Body = dict[str, Any]

TRACEPARENT = "traceparent"  # W3C's header


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


def check_multimodal(body: Body) -> None:
    """Refuse images and audios. Raises InvalidRequest."""
    given = body.get("multimodal_params") or {}
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"multimodal_params must be an object, got {type(given).__name__}")
    for key, value in given.items():
        if key not in ("images", "audios"):
            raise InvalidRequest(f"MultimodalParams.__init__() got an unexpected keyword argument '{key}'")
        if value:
            raise InvalidRequest(f"multimodal_params {key} is not supported yet")


async def admit_generate(
    request: Request, body: Body, services: Services, *, is_stream: bool = False
) -> GenerationRequest:
    """A request of /generate or /generate_stream. Raises InvalidRequest, WrongModel, NoWorker, TooManyRequests,
    Refused, QueueFull."""
    prompt = required(body, "inputs")
    parameters = read_parameters(body, services)
    if is_stream and parameters.n != 1:
        raise InvalidRequest("stream api only support best_of == 1")
    check_multimodal(body)
    if services.facts.is_reward:
        raise WrongModel(f"{services.facts.name} is a reward model, it only serves /get_score")
    answer = AnswerParams(GENERATE_STREAM if is_stream else GENERATE, parameters.return_details and not is_stream)
    return await _admit(
        services,
        request,
        prompt,
        parameters.add_special_tokens,
        parameters.sampling,
        parameters.output,
        parameters.n,
        answer,
    )


async def admit_score(request: Request, body: Body, services: Services) -> GenerationRequest:
    """A request of /get_score; its parameters are never read. Raises as `admit_generate`."""
    prompt = required(body, "chat")
    check_multimodal(body)
    if not services.facts.is_reward:
        raise WrongModel(f"{services.facts.name} is not a reward model, it does not serve /get_score")
    sampling = SamplingParams(seed=0, max_new_tokens=1)
    answer = AnswerParams(GET_SCORE)
    return await _admit(services, request, prompt, True, sampling, OutputParams(), 1, answer, "score")


async def _admit(
    services: Services,
    request: Request,
    prompt: object,
    add_special_tokens: bool,
    sampling: SamplingParams,
    output: OutputParams,
    n: int,
    answer: AnswerParams,
    kind: Literal["generate", "score"] = "generate",
) -> GenerationRequest:
    arrived_ms = now_ms()
    priority, timeout_s = read_priority(request.headers), read_timeout_s(request.headers, services.settings.api)
    await services.gate.check(Asked(priority, n, 0, timeout_s))
    if sampling.grammar is not None:
        await services.grammars.check(sampling.grammar)
    workers = await services.view.workers()
    ready = [worker for worker in workers if worker.state == WorkerState.READY]
    limit = largest_request_tokens(
        ready, services.settings.model.max_total_tokens, services.facts.max_position_embeddings
    )
    token_ids = await tokenize(prompt, add_special_tokens, limit, services)
    if not token_ids:
        raise InvalidRequest("prompt_ids is empty")
    if len(token_ids) + sampling.max_new_tokens > limit:
        raise InvalidRequest(
            f"the input prompt token len {len(token_ids)} + max_new_tokens {sampling.max_new_tokens} > {limit}"
        )
    check_workers(services, {worker.role for worker in workers})
    request_id = request.scope["pdq.request_id"]
    if (lease := lease_of(request.scope)) is not None:
        request_id = await lease.reserve(request_id, len(token_ids), sampling.max_new_tokens, n)
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=token_ids,
        sampling=sampling,
        output=output,
        n=n,
        kind=kind,
        api_id=services.api_id,
        created_ms=arrived_ms,
        owner=owner_of(request),
        priority=priority,
        deadline_ms=arrived_ms + math.ceil(timeout_s * 1000) if timeout_s else 0,
        is_detached=is_detached(request),
        answer=answer,
        trace=valid_traceparent(request.headers.get(TRACEPARENT, "")),
    )


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
