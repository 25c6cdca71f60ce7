"""How each route writes its answers, by the name that a request's record keeps of the route that began it.

Pure. Any API process can so continue a stream that another one began, and give a result that nobody waited for. A new
route adds its name here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from api.errors import failure
from api.frames import OutputToken, error_frame, generate_body, score_body, stream_frame
from messages import GenerationRequest, InvalidRequest, TokenEvent

GENERATE = "generate"
GENERATE_STREAM = "generate_stream"
GET_SCORE = "get_score"


class StreamFrames(Protocol):
    """How a route writes one stream. It is fed every token of the choice in order, also those that were sent before,
    so that it may keep state; what it returns for those is dropped."""

    def token(self, token: OutputToken) -> bytes:
        """The event or events of one token, in full lines."""

    def error(self, message: str) -> bytes:
        """The last event of a stream that failed after its headers went out."""


class LightLLMFrames:
    """Those of /generate_stream."""

    def __init__(self, request: GenerationRequest) -> None:
        self._prompt_tokens = len(request.prompt_token_ids)

    def token(self, token: OutputToken) -> bytes:
        """See StreamFrames."""
        return stream_frame(token, self._prompt_tokens)

    def error(self, message: str) -> bytes:
        """See StreamFrames."""
        return error_frame(message)


Tokens = Sequence[Sequence[OutputToken]]  # of every choice

_FRAMES: Mapping[str, Callable[[GenerationRequest], StreamFrames]] = {GENERATE_STREAM: LightLLMFrames}


def frames_of(request: GenerationRequest) -> StreamFrames:
    """The frames of the route that began `request`. Raises InvalidRequest where it has none."""
    try:
        return _FRAMES[request.answer.route](request)
    except KeyError:
        raise InvalidRequest(
            f"request id {request.request_id!r} was begun by /{request.answer.route}, which has no stream"
        ) from None


def body_of(request: GenerationRequest, choices: Tokens) -> bytes:
    """The whole answer to a request that has ended; of a stream, what /generate would have said."""
    return generate_body(choices, len(request.prompt_token_ids), request.answer.with_details)


def score_body_of(request: GenerationRequest, event: TokenEvent) -> bytes:
    """The whole answer to a request of kind "score". Raises RequestError when it failed."""
    if event.score is None:
        raise failure(event)
    return score_body(event.score, len(request.prompt_token_ids))
