"""How a failure becomes an HTTP answer: `{"message": "..."}` with LightLLM's status codes, or OpenAI's error object.

Knows the error tree of the root's errors.py, HTTP, and which paths are OpenAI's. Every client error is a 417 on
LightLLM's routes and a 400 on OpenAI's, never a 422.
"""

import errno
import math
from collections.abc import Mapping

import orjson
from fastapi.exception_handlers import http_exception_handler
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from errors import InvalidRequest, QueueFull, RequestError, WorkerFailed
from messages.token_event import FinishReason, TokenEvent
from telemetry import get_logger

log = get_logger()

RETRY_AFTER_S = 1
CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody reads it
MAX_MESSAGE_CHARS = 1000  # a message names what the client sent, which may be as long as the body
BROKER_LOST = "Server is busy, its queue can not be reached (Status code: 503)"


class BodyTooLarge(RequestError):
    """The request's body is longer than settings.api.max_body_bytes."""

    status = 413


class TooManyRequests(RequestError):
    """The API key has used up one of its limits."""

    status = 429

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(retry_after_s))


class WrongModel(RequestError):
    """The route does not fit the kind of model that is served."""

    status = 417


class BadField(InvalidRequest):
    """A field of an OpenAI request is at fault. `param` is its name."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class UnknownModel(RequestError):
    """OpenAI's routes: another model is asked for than the one that is served."""

    status = 404
    param = "model"


class UnknownRequest(RequestError):
    """There is no request of this id, or it is another's; which of the two is not told."""

    status = 404


class UnknownObject(RequestError):
    """There is no file or batch of this id, or it is another's; which of the two is not told."""

    status = 404
    param = "id"


class InUse(RequestError):
    """What is asked for would take away what is still needed, or change what is over."""

    status = 409


class NotStored(RequestError):
    """There is no place for a file: 507 where nothing is left, 503 where the place is away."""

    status = 503

    def __init__(self, error: Exception) -> None:
        said = error.strerror if isinstance(error, OSError) else None
        super().__init__(f"the file cannot be kept: {said or type(error).__name__}")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            self.status = 507


def failure(event: TokenEvent) -> RequestError:
    """The error that a terminal event with `finish_reason` error stands for."""
    error = WorkerFailed(event.error or "the request failed on the server")
    if 400 <= event.error_status <= 599:
        error.status = event.error_status
    return error


def is_openai(path: str) -> bool:
    """Whether it is a path of OpenAI's API, or of those that its other servers have added to it."""
    return path.startswith("/v1/") or path.rstrip("/") in ("/tokenize", "/detokenize", "/tokenizer_info")


def openai_error(status: int, message: str, param: str | None = None) -> dict[str, object]:
    """OpenAI's error object; a `status` of LightLLM's alone becomes 400."""
    status = 400 if status == 417 else status
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message[:MAX_MESSAGE_CHARS], "type": kind, "param": param, "code": status}}


_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def message_response(
    path: str,
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    retry_after_s: int = RETRY_AFTER_S,
    param: str | None = None,
) -> Response:
    """`{"message": message}`, or what OpenAI says if `path` is one of its; a 503 and a 429 tell when to come again."""
    extra = dict(headers or {})
    if status in (429, 503):
        extra["Retry-After"] = str(retry_after_s)
    content: dict[str, object] = {"message": message[:MAX_MESSAGE_CHARS]}
    if is_openai(path):
        content = openai_error(status, message, param)
        status = 400 if status == 417 else status
    return Response(orjson.dumps(content), status, extra, "application/json")


def error_response(path: str, error: RequestError, prefix: str = "") -> Response:
    """The answer to a request to `path` that ended in `error`."""
    retry_after_s = error.retry_after_s if isinstance(error, QueueFull | TooManyRequests) else RETRY_AFTER_S
    param = error.param if isinstance(error, BadField | UnknownModel | UnknownObject) else None
    return message_response(path, error.status, f"{prefix}{error}", retry_after_s=retry_after_s, param=param)


def stream_failure(error: RequestError | RedisError) -> RequestError:
    """What a client is told of `error`; Redis' own words stay in the log."""
    return error if isinstance(error, RequestError) else _broker_lost(error)


def _broker_lost(error: RedisError) -> RequestError:
    log.error("broker_unreachable", reason=type(error).__name__)
    lost = WorkerFailed(BROKER_LOST)
    lost.status = 503
    return lost


async def on_request_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler for RequestError."""
    assert isinstance(error, RequestError)
    return error_response(request.url.path, error)


async def on_redis_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler for a Redis that is away for longer than the client's retries."""
    assert isinstance(error, RedisError)
    return error_response(request.url.path, _broker_lost(error))


async def on_http_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler for a path or a method that nobody serves."""
    assert isinstance(error, HTTPException)
    if is_openai(request.url.path):
        return message_response(request.url.path, error.status_code, error.detail, error.headers)
    return await http_exception_handler(request, error)


async def on_client_left(_: Request, __: Exception) -> Response:
    """FastAPI's handler for a client that left before its body was whole."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def on_defect(request: Request, _: Exception) -> Response:
    """FastAPI's handler for anything else. The server logs the traceback; the client gets no detail."""
    headers = {"X-Request-Id": str(request.scope.get("pdq.request_id", ""))}
    return message_response(request.url.path, 500, "Internal Server Error", headers)


def aborted() -> TokenEvent:
    """The terminal event of a sequence nobody waits for any more."""
    return TokenEvent(finish_reason=FinishReason.ABORT)
