"""How a failure becomes an HTTP answer: `{"message": "..."}` with LightLLM's status codes.

Knows the error tree of messages.py and HTTP; knows no route. Every client error is a 417, never a 422.
"""

import math
from collections.abc import Mapping

import orjson
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response

from messages import FinishReason, QueueFull, RequestError, TokenEvent, WorkerFailed
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


class UnknownRequest(RequestError):
    """There is no request of this id, or it is another's; which of the two is not told."""

    status = 404


def failure(event: TokenEvent) -> RequestError:
    """The error that a terminal event with `finish_reason` error stands for."""
    error = WorkerFailed(event.error or "the request failed on the server")
    if 400 <= event.error_status <= 599:
        error.status = event.error_status
    return error


def message_response(
    status: int, message: str, headers: Mapping[str, str] | None = None, retry_after_s: int = RETRY_AFTER_S
) -> Response:
    """`{"message": message}`; a 503 and a 429 tell when to come again."""
    extra = dict(headers or {})
    if status in (429, 503):
        extra["Retry-After"] = str(retry_after_s)
    return Response(orjson.dumps({"message": message[:MAX_MESSAGE_CHARS]}), status, extra, "application/json")


def error_response(error: RequestError, prefix: str = "") -> Response:
    """The answer to a request that ended in `error`."""
    retry_after_s = error.retry_after_s if isinstance(error, QueueFull | TooManyRequests) else RETRY_AFTER_S
    return message_response(error.status, f"{prefix}{error}", retry_after_s=retry_after_s)


def stream_failure(error: RequestError | RedisError) -> RequestError:
    """What a client is told of `error`; Redis' own words stay in the log."""
    return error if isinstance(error, RequestError) else _broker_lost(error)


def _broker_lost(error: RedisError) -> RequestError:
    log.error("broker_unreachable", reason=type(error).__name__)
    lost = WorkerFailed(BROKER_LOST)
    lost.status = 503
    return lost


async def on_request_error(_: Request, error: Exception) -> Response:
    """FastAPI's handler for RequestError."""
    assert isinstance(error, RequestError)
    return error_response(error)


async def on_redis_error(_: Request, error: Exception) -> Response:
    """FastAPI's handler for a Redis that is away for longer than the client's retries."""
    assert isinstance(error, RedisError)
    return error_response(_broker_lost(error))


async def on_client_left(_: Request, __: Exception) -> Response:
    """FastAPI's handler for a client that left before its body was whole."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def on_defect(request: Request, _: Exception) -> Response:
    """FastAPI's handler for anything else. The server logs the traceback; the client gets no detail."""
    headers = {"X-Request-Id": str(request.scope.get("pdq.request_id", ""))}
    return message_response(500, "Internal Server Error", headers)


def aborted() -> TokenEvent:
    """The terminal event of a sequence nobody waits for any more."""
    return TokenEvent(finish_reason=FinishReason.ABORT)
