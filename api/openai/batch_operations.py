"""What /openapi.json says of files and batches; api/openapi.py asks for this table. Pure."""

from typing import Any

from api.openai.batch_bodies import ENDPOINTS
from messages.batch import BatchStatus
from settings.batch import BatchSettings

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_MAYBE_TEXT: Json = {"type": ["string", "null"]}
_STAMP: Json = {"type": ["integer", "null"], "description": "Unix time (s)."}
_STATUSES = {
    400: "The request is at fault; the message says where, `param` in which field.",
    401: "No API key, or one that is not known.",
    403: "The API key's scope does not allow this.",
    404: "There is no such file or batch, or it is another key's.",
    409: "It is in use, over already, or there are too many.",
    413: "The body is too large.",
    429: "The API key has used up one of its limits; Retry-After says when to come again.",
    431: "The head is too large.",
    500: "The work failed on the server.",
    503: "Redis cannot be reached; Retry-After says when to come again.",
}
_ALWAYS = (401, 403, 429, 431, 503)


def batch_operations(limits: BatchSettings) -> dict[str, dict[str, Json]]:
    """By path and method."""
    upload = {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"const": "batch"}},
    }
    wanted = {
        "type": "object",
        "required": ["input_file_id", "endpoint", "completion_window"],
        "properties": {
            "input_file_id": _TEXT,
            "endpoint": {"enum": list(ENDPOINTS)},
            "completion_window": {"type": "string", "pattern": "^[0-9]{1,7}[smhd]$"},
            "metadata": {"type": ["object", "null"], "maxProperties": 16, "additionalProperties": _TEXT},
            "webhook_url": {"type": ["string", "null"], "description": "Who is told of the batch's end."},
        },
    }
    content = _operation(_TEXT, 404)
    content["responses"]["200"]["content"] = {"application/octet-stream": {}}
    description = f"At most {limits.max_file_bytes} bytes."
    sent = {"required": True, "description": description, "content": {"multipart/form-data": {"schema": upload}}}
    asked = {"required": True, "content": {"application/json": {"schema": wanted}}}
    deleted = _object(id=_TEXT, object={"const": "file"}, deleted={"const": True})
    return {
        "/v1/files": {
            "post": _operation(_FILE, 400, 409, 413, 500, requestBody=sent),
            "get": _operation(_page(_FILE), 400, parameters=[*_PAGING, _query("purpose"), _query("order")]),
        },
        "/v1/files/{file_id}": {"get": _operation(_FILE, 404), "delete": _operation(deleted, 404, 409)},
        "/v1/files/{file_id}/content": {"get": content},
        "/v1/batches": {
            "post": _operation(_BATCH, 400, 404, 409, 413, requestBody=asked),
            "get": _operation(_page(_BATCH), 400, parameters=_PAGING),
        },
        "/v1/batches/{batch_id}": {"get": _operation(_BATCH, 404)},
        "/v1/batches/{batch_id}/cancel": {"post": _operation(_BATCH, 404, 409)},
    }


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


def _page(item: Json) -> Json:
    listed = {"type": "array", "items": item}
    ends = {"first_id": _MAYBE_TEXT, "last_id": _MAYBE_TEXT, "has_more": {"type": "boolean"}}
    return _object(object={"const": "list"}, data=listed, **ends)


def _query(name: str) -> Json:
    return {"name": name, "in": "query", "schema": _TEXT}


def _operation(schema: Json, *errors: int, **details: Any) -> Json:
    error = _object(error=_object(message=_TEXT, type=_TEXT, param=_MAYBE_TEXT, code={"type": "integer"}))
    responses: Json = {"200": {"description": "As asked.", "content": {"application/json": {"schema": schema}}}}
    for status in sorted({*_ALWAYS, *errors}):
        content = {"application/json": {"schema": error}}
        responses[str(status)] = {"description": _STATUSES[status], "content": content}
    return {"parameters": [], "responses": responses, **details}


_FILE = _object(
    id=_TEXT,
    object={"const": "file"},
    bytes=_COUNT,
    created_at=_COUNT,
    expires_at=_STAMP,
    filename=_TEXT,
    purpose=_TEXT,
    status=_TEXT,
)
_BATCH = _object(
    id=_TEXT,
    object={"const": "batch"},
    endpoint=_TEXT,
    errors={"type": ["object", "null"]},
    input_file_id=_TEXT,
    completion_window=_TEXT,
    status={"enum": list(BatchStatus)},
    output_file_id=_MAYBE_TEXT,
    error_file_id=_MAYBE_TEXT,
    created_at=_COUNT,
    expires_at=_COUNT,
    request_counts=_object(total=_COUNT, completed=_COUNT, failed=_COUNT),
    metadata={"type": ["object", "null"]},
    **{f"{status}_at": _STAMP for status in BatchStatus if status is not BatchStatus.VALIDATING},
)
_PAGING = [_query("after"), _query("limit")]
