"""What /openapi.json says of OpenAI's routes; the rest of it is in api/openapi.py, which asks for this table.

Pure. Names the fields that are read here, and their bounds; others are OpenAI's to explain, and are ignored or refused
(`unsupported.py`).
"""

from collections.abc import Sequence
from typing import Any

from api.openai.parameters import COMPLETION_TOKENS
from api.openai.tools import MAX_TOOLS
from api.parameters import MAX_SEED
from settings import ApiSettings

Json = dict[str, Any]

_COUNT: Json = {"type": "integer", "minimum": 0}
_TEXT: Json = {"type": "string"}
_FLAG: Json = {"type": "boolean"}
_IDS: Json = {"type": "array", "items": _COUNT}
_EVENT: Json = {"type": "object", "required": ["data"], "properties": {"data": _TEXT}}  # of each event
_PART: Json = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": _TEXT},
}
_IMAGE_PART: Json = {  # in users' messages, where the model reads images
    "type": "object",
    "required": ["type", "image_url"],
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {"type": "object", "required": ["url"], "properties": {"url": _TEXT}},
    },
}
_MESSAGES: Json = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": [_PART, _IMAGE_PART]}}]},
        },
    },
}
_FUNCTION: Json = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
        "description": _TEXT,
        "parameters": {"type": "object"},
    },
}
_TOOL: Json = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {"type": {"const": "function"}, "function": _FUNCTION},
}
_NAMED_TOOL: Json = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "required": ["name"], "properties": {"name": _TEXT}},
    },
}
_STATUSES = {
    400: "The request is at fault; the message says where, `param` in which field.",
    401: "No API key, or one that is not known.",
    403: "The API key's scope does not allow this.",
    404: "Another model is served.",
    413: "The body is too large.",
    429: "The API key has used up one of its limits; Retry-After says when to come again.",
    431: "The head is too large.",
    500: "The work failed on the server, repeatedly.",
    503: "Too much waits, or no worker is ready; Retry-After says when to come again.",
    504: "The time that X-Request-Timeout gave is over.",
}


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(item: Json) -> Json:
    return _object(object={"const": "list"}, data={"type": "array", "items": item})


_ERROR = _object(error=_object(message=_TEXT, type=_TEXT, param={"type": ["string", "null"]}, code={"type": "integer"}))
_USAGE = _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
_MODEL = _object(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT, max_model_len=_COUNT)
_TOKENIZED = _object(
    count=_COUNT, max_model_len=_COUNT, tokens=_IDS, token_strs={"type": ["array", "null"], "items": _TEXT}
)


def openai_operations(limits: ApiSettings, terms: Sequence[Json]) -> dict[str, dict[str, Json]]:
    """By path and method. `terms`: the headers of every route that generates."""
    prompt = {"anyOf": [_TEXT, _IDS, {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}}]}
    logprobs = {"type": "integer", "minimum": 0, "maximum": limits.max_top_logprobs}
    max_tokens = {"type": "integer", "minimum": 0, "description": f"{COMPLETION_TOKENS} if not given."}
    completion = {"prompt": prompt, "max_tokens": max_tokens, "echo": _FLAG, "logprobs": logprobs, **_common(limits)}
    chat = {
        "messages": _MESSAGES,
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "logprobs": _FLAG,
        "top_logprobs": logprobs,
        "add_generation_prompt": _FLAG,
        "continue_final_message": _FLAG,
        "chat_template_kwargs": {"type": "object"},
        "tools": {"type": "array", "maxItems": MAX_TOOLS, "items": _TOOL},
        "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, _NAMED_TOOL]},
        "parallel_tool_calls": _FLAG,
        **_common(limits),
    }
    tokenize = {"prompt": _TEXT, "messages": _MESSAGES, "add_special_tokens": _FLAG, "return_token_strs": _FLAG}
    return {
        "/v1/completions": {"post": _generating("text_completion", completion, "prompt", terms)},
        "/v1/chat/completions": {"post": _generating("chat.completion", chat, "messages", terms)},
        "/v1/models": {"get": _operation(_list(_MODEL))},
        "/v1/models/{model}": {"get": _operation(_MODEL, 404)},
        "/tokenize": {"post": _operation(_TOKENIZED, 400, 404, 413, 500, requestBody=_body(tokenize))},
        "/tokenizer_info": {"get": _operation(_object(chat_template={"type": ["string", "null"]}))},
        "/detokenize": {
            "post": _operation(_object(prompt=_TEXT), 400, 404, 413, requestBody=_body({"tokens": _IDS}, "tokens"))
        },
    }


def _common(limits: ApiSettings) -> Json:
    stop_items = {"type": "string", "minLength": 1, "maxLength": limits.max_stop_tokens}
    stops = {"type": "array", "maxItems": limits.max_stop_sequences, "items": stop_items}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    penalty = {"type": "number", "minimum": -2, "maximum": 2}
    return {
        "model": _TEXT,
        "n": {"type": "integer", "minimum": 1, "maximum": limits.max_best_of},
        "stream": _FLAG,
        "stream_options": {
            "type": "object",
            "properties": {"include_usage": _FLAG, "continuous_usage_stats": _FLAG},
        },
        "temperature": {"type": "number", "minimum": 0},
        "top_p": share,
        "top_k": {"type": "integer", "minimum": -1},
        "min_p": share,
        "presence_penalty": penalty,
        "frequency_penalty": penalty,
        "repetition_penalty": {"type": "number", "exclusiveMinimum": 0},
        "seed": {"type": "integer", "minimum": -(2**63), "maximum": MAX_SEED},
        "stop": {"anyOf": [stop_items, stops]},
        "stop_token_ids": {"type": "array", "maxItems": limits.max_stop_sequences, "items": _COUNT},
        "include_stop_str_in_output": _FLAG,
        "ignore_eos": _FLAG,
        "min_tokens": _COUNT,
        "logit_bias": {
            "type": "object",
            "maxProperties": limits.max_logit_bias,
            "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": {"type": "number"},
        },
        "skip_special_tokens": _FLAG,
        "response_format": {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {"type": "object"}},
        },
    }


def _generating(kind: str, fields: Json, required: str, terms: Sequence[Json]) -> Json:
    answer = _object(
        id=_TEXT, object={"const": kind}, created=_COUNT, model=_TEXT, choices={"type": "array"}, usage=_USAGE
    )
    operation = _operation(answer, 400, 404, 413, 500, 504, requestBody=_body(fields, required), parameters=[*terms])
    content = operation["responses"]["200"]["content"]
    content["text/event-stream"] = {"schema": _EVENT}  # with `stream`: chunks, then [DONE]
    return operation


def _operation(schema: Json, *errors: int, **details: Any) -> Json:
    responses = {"200": _answer("As asked.", schema)}
    for status in sorted({401, 403, 429, 431, 503, *errors}):
        responses[str(status)] = _answer(_STATUSES[status], _ERROR)
    return {"parameters": [], "responses": responses, **details}


def _answer(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _body(properties: Json, *required: str) -> Json:
    schema = {"type": "object", "required": list(required), "properties": properties}
    return {"required": True, "content": {"application/json": {"schema": schema}}}
