"""How each route writes its answers, by the name that a request's record keeps of the route that began it.

Pure. Any API process can so continue a stream that another one began, and give a result that nobody waited for. A new
route adds its name here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from api.errors import failure
from api.frames import OutputToken, error_frame, generate_body, prompt_listing, score_body, stream_frame
from api.openai.bodies import chat_body, completion_body
from api.openai.chunks import ChatChunks, CompletionChunks
from api.services import Services
from api.tgi import TgiFrames, tgi_body
from errors import InvalidRequest
from messages.request import GenerationRequest
from messages.token_event import TokenEvent

GENERATE = "generate"
GENERATE_STREAM = "generate_stream"
GET_SCORE = "get_score"
TGI_GENERATE = "generate, as TGI"
TGI_GENERATE_STREAM = "generate_stream, as TGI"
COMPLETIONS = "v1/completions"
COMPLETIONS_STREAM = "v1/completions, stream"
CHAT = "v1/chat/completions"
CHAT_STREAM = "v1/chat/completions, stream"


class StreamFrames(Protocol):
    """How a route writes one stream. It is fed every token of each choice in order, also those that were sent before,
    so that it may keep state; what it returns for those is dropped."""

    def token(self, token: OutputToken, choice: int) -> bytes:
        """The event or events of one token, in full lines; may be none."""

    def error(self, message: str, status: int) -> bytes:
        """The last event of a stream that failed after its headers went out."""


class LightLLMFrames:
    """Those of /generate_stream."""

    def __init__(self, requests: Sequence[GenerationRequest], services: Services) -> None:
        (self._request,) = requests
        self._prompt_tokens = len(self._request.prompt_token_ids)
        self._lists_prompt = self._request.sampling.num_prompt_logprobs is not None

    def token(self, token: OutputToken, choice: int) -> bytes:
        """See StreamFrames."""
        if self._lists_prompt and token.index == 0:
            return stream_frame(token, self._prompt_tokens, prompt_listing(self._request.prompt_token_ids, token))
        return stream_frame(token, self._prompt_tokens)

    def error(self, message: str, status: int) -> bytes:
        """See StreamFrames."""
        return error_frame(message)


Requests = Sequence[GenerationRequest]  # one, or one for each prompt of a list of them
Choices = Sequence[Sequence[OutputToken]]  # the tokens of every choice; of several requests one after the other

_FRAMES: Mapping[str, Callable[[Requests, Services], StreamFrames]] = {
    GENERATE_STREAM: LightLLMFrames,
    TGI_GENERATE_STREAM: TgiFrames,
    COMPLETIONS_STREAM: CompletionChunks,
    CHAT_STREAM: ChatChunks,
}
_BODIES: Mapping[str, Callable[[Requests, Choices, Services], bytes]] = {
    TGI_GENERATE: tgi_body,
    TGI_GENERATE_STREAM: tgi_body,
    COMPLETIONS: completion_body,
    COMPLETIONS_STREAM: completion_body,
    CHAT: chat_body,
    CHAT_STREAM: chat_body,
}


def frames_of(requests: Requests, services: Services) -> StreamFrames:
    """The frames of the route that began them. Raises InvalidRequest where it has none."""
    first = requests[0]
    frames = _FRAMES.get(first.answer.route)
    if frames is None:
        raise InvalidRequest(f"request id {first.request_id!r} was begun by /{first.answer.route}, which has no stream")
    return frames(requests, services)


def body_of(requests: Requests, choices: Choices, services: Services) -> bytes:
    """The whole answer to requests that have ended; of a stream, what its route says to who wants none."""
    body = _BODIES.get(requests[0].answer.route)
    return generate_body(requests[0], choices) if body is None else body(requests, choices, services)


def score_body_of(request: GenerationRequest, event: TokenEvent) -> bytes:
    """The whole answer to a request of kind "score". Raises RequestError when it failed."""
    if event.score is None:
        raise failure(event)
    return score_body(event.score, len(request.prompt_token_ids))
