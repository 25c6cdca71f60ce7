"""What /openapi.json says of the routes: bodies, headers and answers.

A table beside the routes and not types in them: they read JSON by LightLLM's rules (coercion.py), under which a 422 of
pydantic's would never be right. Pure. Knows names, types and bounds; a route that is not listed here has but a name.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from api.openai.batch_operations import batch_operations
from api.openai.operations import openai_operations
from api.request_id import HEADER
from api.resuming import DETACHED, LAST_EVENT_ID, SSE_IDS
from api.terms import PRIORITY, TIMEOUT
from api.tgi import STYLE, STYLES
from messages import FinishReason, Phase, Priority
from settings import ApiSettings, BatchSettings

Json = dict[str, Any]

_MESSAGE: Json = {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}
_FINISH_REASON: Json = {"enum": [*FinishReason, None]}
_COUNT: Json = {"type": "integer", "minimum": 0}
_ERRORS: Mapping[int, str] = {
    401: "No API key, or one that is not known.",
    403: "The API key's scope does not allow this.",
    404: "There is no request of this id, or it is another key's.",
    413: "The body is too large.",
    417: "The request is at fault; the message says where.",
    429: "The API key has used up one of its limits; Retry-After says when to come again.",
    431: "The head is too large.",
    500: "The work failed on the server, repeatedly.",
    503: "Too much waits, or no worker is ready; Retry-After says when to come again.",
    504: "The time that X-Request-Timeout gave is over.",
}
_ALWAYS = (401, 403, 429, 431, 503)


def described(bare: Callable[[], Json], limits: ApiSettings, batch_limits: BatchSettings) -> Json:
    """`bare()`, which is FastAPI's document, with all that it cannot see."""
    with warnings.catch_warnings():
        # A route of two methods has one id for both; ours are set below.
        warnings.filterwarnings("ignore", "Duplicate Operation ID", UserWarning)
        document = bare()
    details = _operations(limits) | openai_operations(limits, (*_TERMS, _SSE_IDS)) | batch_operations(batch_limits)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            more = details.get(path, {}).get(method, {})
            parameters = [*operation.get("parameters", []), *more.get("parameters", [])]
            name = re.sub(r"\W+", "_", path).strip("_") or "root"
            operation.update(more, parameters=parameters, operationId=f"{method}_{name}")
    document["components"] = {
        "securitySchemes": {
            "key": {"type": "http", "scheme": "bearer", "description": "Asked for where security.keys_file is set."}
        }
    }
    return document


def _operations(limits: ApiSettings) -> dict[str, dict[str, Json]]:
    generate = _body(
        {"inputs": _PROMPT, "parameters": _parameters(limits), "multimodal_params": _MULTIMODAL}, "inputs", "parameters"
    )
    either = _body(
        {
            "inputs": _PROMPT,
            "parameters": _parameters(limits),
            "multimodal_params": _MULTIMODAL,
            "stream": {"type": "boolean", "description": "Whether to answer as /generate_stream does."},
        },
        "inputs",
        "parameters",
    )
    tokens = _body({"text": _PROMPT, "parameters": _parameters(limits)}, "text")
    work = (413, 417, 500, 504)
    count = _operation(200, _object(ntokens=_COUNT), errors=(413, 417), requestBody=tokens)
    model_name = _operation(200, _object(model_name={"type": "string"}))
    alive = _operation(200, _object(status={"const": "ok"}))
    ready = _operation(200, _object(status={"type": "string"}))
    ready["responses"]["503"] = _answer("Not ready.", _object(status={"type": "string"}, detail={"type": "string"}))
    health = _operation(200, _MESSAGE)
    ping = _operation(200, _MESSAGE)
    for status in ("200", "503"):
        ping["responses"][status] = {"description": "Without a word."}
    request_id = (404, 417)
    return {
        "/generate": {"post": _operation(200, _GENERATED_EITHER, *_TERMS, _STYLE, errors=work, requestBody=generate)},
        "/generate_stream": {"post": _stream(*_TERMS, _SSE_IDS, _STYLE, errors=work, requestBody=generate)},
        "/": {"post": _either(*_TERMS, _SSE_IDS, _STYLE, errors=work, requestBody=either)},
        "/get_score": {
            "post": _operation(200, _SCORED, *_TERMS, errors=work, requestBody=_body({"chat": _PROMPT}, "chat"))
        },
        "/tokens": {"post": count, "get": count},
        "/requests/{request_id}": {
            "get": _operation(200, _VIEW, errors=request_id),
            "delete": _operation(200, _CANCELLED, errors=request_id),
        },
        "/requests/{request_id}/stream": {"get": _stream(_LAST_EVENT_ID, _AFTER, errors=(*request_id, 504))},
        "/get_model_name": {"get": model_name, "post": model_name},
        "/token_load": {"get": _operation(200, _LOAD)},
        "/cluster": {"get": _operation(200, _CLUSTER)},
        "/metrics": {"get": _text("text/plain", "Prometheus' text format.")},
        "/health": {"get": health, "head": health},
        "/healthz": {"get": health},
        "/ping": {"get": ping, "post": ping},
        "/version": {"get": _operation(200, _object(version={"type": "string"}))},
        "/readiness": {"get": ready, "post": ready},
        "/liveness": {"get": alive, "post": alive},
    }


# -- what an operation is made of ------------------------------------------------------------------------------------


def _operation(status: int, schema: Json, *parameters: Json, errors: tuple[int, ...] = (), **details: Json) -> Json:
    responses = {str(status): _answer("As asked.", schema)}
    for code in sorted({*_ALWAYS, *errors}):
        responses[str(code)] = _answer(_ERRORS[code], _MESSAGE)
    return {"parameters": list(parameters), "responses": responses, **details}


def _stream(*parameters: Json, errors: tuple[int, ...], **details: Json) -> Json:
    operation = _operation(200, {}, *parameters, errors=errors, **details)
    operation["responses"]["200"] = {
        "description": "An event per token; the last one has a finish_reason, or is an error.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
    return operation


def _either(*parameters: Json, errors: tuple[int, ...], **details: Json) -> Json:
    operation = _stream(*parameters, errors=errors, **details)
    operation["responses"]["200"]["content"]["application/json"] = {"schema": _GENERATED_EITHER}
    return operation


def _text(media_type: str, description: str) -> Json:
    operation = _operation(200, {})
    operation["responses"]["200"] = {
        "description": description,
        "content": {media_type: {"schema": {"type": "string"}}},
    }
    return operation


def _answer(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _body(properties: Json, *required: str) -> Json:
    schema = {"type": "object", "required": list(required), "properties": properties}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


def _header(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


# -- the words -------------------------------------------------------------------------------------------------------

_PROMPT: Json = {"oneOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": _COUNT, "minItems": 1}]}
_IMAGE: Json = {
    "type": "object",
    "required": ["type", "data"],
    "properties": {"type": {"enum": ["base64", "url"]}, "data": {"type": "string", "minLength": 1}},
}
_MULTIMODAL: Json = {
    "type": "object",
    "description": "For models that read images: one for each <image> of the prompt. Else to be left out or empty.",
    "properties": {"images": {"type": "array", "items": _IMAGE}},
}
_EVENT: Json = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}  # of each event
_FLAG: Json = {"enum": ["true", "false"]}
_TERMS = (
    _header(HEADER, {"type": "string"}, "The request's id, where it is harmless as a key."),
    _header(PRIORITY, {"enum": list(Priority)}, "Which waiting request goes first."),
    _header(TIMEOUT, {"type": "number", "exclusiveMinimum": 0}, "Seconds after which nobody waits for it."),
    _header(DETACHED, _FLAG, "Whether it goes on when its client leaves."),
)
_SSE_IDS = _header(SSE_IDS, _FLAG, "Whether events have ids, by which the stream can be resumed.")
_STYLE = _header(STYLE, {"enum": list(STYLES)}, "Whose shape request and answer have: LightLLM's, or TGI's.")
_LAST_EVENT_ID = _header(LAST_EVENT_ID, {"type": "integer", "minimum": -1}, "The last event that the client has.")
_AFTER: Json = {"name": "after", "in": "query", "required": False, "schema": {"type": "integer", "minimum": -1}}


def _parameters(limits: ApiSettings) -> Json:
    """LightLLM's parameters. What is out of its bounds here is refused with 417; null is the default."""
    max_int32 = 2**31 - 1
    tokens = {"type": "integer", "minimum": 1, "maximum": max_int32}
    number = {"type": "number"}
    flag = {"type": "boolean"}
    text = {"type": "string", "maxLength": limits.max_grammar_bytes}
    properties = {
        "do_sample": flag,
        "temperature": number | {"minimum": 0},
        "top_p": number | {"exclusiveMinimum": 0, "maximum": 1},
        "top_k": {"type": "integer", "minimum": -1, "maximum": max_int32, "not": {"const": 0}},
        "min_p": number | {"minimum": 0, "maximum": 1},
        "presence_penalty": number | {"minimum": 0},
        "frequency_penalty": number | {"minimum": 0},
        "repetition_penalty": number | {"minimum": 1},
        "exponential_decay_length_penalty": {"type": "array", "minItems": 2, "maxItems": 2, "items": number},
        "input_penalty": flag,
        "ignore_eos": flag,
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "seed": {"type": "integer", "minimum": -1, "maximum": 2**63 - 1},
        "best_of": {"type": "integer", "minimum": 1, "maximum": limits.max_best_of},
        "n": {"type": "integer", "minimum": 1, "maximum": limits.max_best_of, "description": "As best_of."},
        "stop_sequences": {"type": "array", "maxItems": limits.max_stop_sequences, "items": {"type": "string"}},
        "allowed_token_ids": {"type": "array", "maxItems": limits.max_allowed_token_ids, "items": _COUNT},
        "logit_bias": {
            "type": "object",
            "maxProperties": limits.max_logit_bias,
            "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": number,
        },
        "guided_json": {
            "type": ["string", "object"],
            "maxLength": limits.max_grammar_bytes,
            "description": "A JSON schema that the output will fit; its text, or the object itself.",
        },
        "guided_grammar": text | {"description": "A grammar in GBNF or Lark that the output will follow."},
        "regular_constraint": text | {"description": "A regular expression that the whole output will match."},
        "prompt_logprobs": {"type": "integer", "minimum": -1, "maximum": limits.max_top_logprobs},
        "return_details": flag,
        "add_special_tokens": flag,
        "skip_special_tokens": flag,
        "add_spaces_between_special_tokens": flag,
        "include_stop_str_in_output": flag,
        "print_eos_token": flag,
    }
    return {"type": "object", "properties": properties, "description": "Others are ignored."}


_ONE_OR_EACH = {"anyOf": [_FINISH_REASON, {"type": "array", "items": _FINISH_REASON}]}
_GENERATED = _object(
    generated_text={"type": "array", "items": {"type": "string"}},
    count_output_tokens={"anyOf": [_COUNT, {"type": "array", "items": _COUNT}]},
    finish_reason=_ONE_OR_EACH,
    prompt_tokens=_COUNT,
)
_GENERATED_EITHER: Json = {"anyOf": [_GENERATED, _object(generated_text={"type": "string"})]}
_SCORED = _object(score={"type": "number"}, prompt_tokens=_COUNT, finish_reason=_FINISH_REASON)
_CANCELLED = _object(request_id={"type": "string"}, cancelled_choices={"type": "array", "items": _COUNT})
_LOAD = _object(
    **{
        name: {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]}
        for name in ("current_load", "logical_max_load", "dynamic_max_load")
    }
)
_LIST: Json = {"type": "array", "items": {"type": "object"}}
_CLUSTER = _object(
    now_ms=_COUNT,
    api_id={"type": "string"},
    model={"type": "string"},
    num_followed=_COUNT,
    workers=_LIST,
    queues=_LIST,
    curves={"type": "object"},
    timelines=_LIST,
    incidents=_LIST,
)
_VIEW = _object(
    request_id={"type": "string"},
    route={"type": "string"},
    created_ms=_COUNT,
    priority={"enum": list(Priority)},
    is_detached={"type": "boolean"},
    prompt_tokens=_COUNT,
    is_finished={"type": "boolean"},
    choices={
        "type": "array",
        "items": _object(
            phase={"enum": [*Phase, "finished"]}, count_output_tokens=_COUNT, finish_reason=_FINISH_REASON
        ),
    },
    result={"type": ["object", "null"]},
    error={"type": ["object", "null"]},
)
